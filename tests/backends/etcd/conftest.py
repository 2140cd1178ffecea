"""Both faces of the store."""
