"""The PostgreSQL store, on real servers that the tests start, kill, freeze and cut off."""
