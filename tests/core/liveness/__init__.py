"""The protocol without any I/O: the decision table, and each path step by step."""
