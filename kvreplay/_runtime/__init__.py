"""What drives the protocol: settings, single-flight, blocking and awaited answers, sweeping."""
