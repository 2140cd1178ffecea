"""The file-system store: its bytes on disk, its crashes, its races and its refusals."""
