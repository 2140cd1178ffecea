"""``python -m kvreplay`` is the command ``kvreplay``."""

import sys

from kvreplay.cli import main

if __name__ == "__main__":
    sys.exit(main())
