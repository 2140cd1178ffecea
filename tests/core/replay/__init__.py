"""Every rule of the protocol, on every engine, blocking and awaited."""
