"""What types become: codecs, by cattrs and pydantic. ``codecs.py`` is the way in."""
