"""The storage engines, each a module or a package; ``config/registry.py`` has their names."""
