"""Configuration: what a URL, a mapping, a file and the environment mean, and how each typo ends."""
