"""The demo: its node, under right and wrong requests, and the story, true and untrue."""
