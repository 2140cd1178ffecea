"""The protocol's small parts, byte for byte."""
