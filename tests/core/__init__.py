"""What is no engine's own: the protocol, what drives it, the contract, configuration, the command line."""
