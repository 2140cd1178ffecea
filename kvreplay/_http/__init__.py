"""The HTTP layer without its input and output: what ``asgi.py`` and ``wsgi.py`` share."""
