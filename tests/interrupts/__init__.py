"""Interrupts at every instruction: an exception out of a signal handler, at each point where one can come."""
