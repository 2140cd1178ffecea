"""The storage engines, one file each; ``kvreplay.config`` has the table of their names."""
