"""The PostgreSQL store, on real servers that the tests start, kill, freeze and cut off."""

from support.needs import needs_psycopg

needs_psycopg()
