"""The storage engines, a module or a package each; ``kvreplay.config`` has their names."""
