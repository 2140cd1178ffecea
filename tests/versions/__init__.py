"""Stores that released versions have made, and what today's code makes of them."""
