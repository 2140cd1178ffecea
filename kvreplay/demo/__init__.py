"""The story that ``kvreplay demo`` tells, and the node that it tells it about.

The node is what a user of kvreplay writes: it imports public names only. :mod:`.orders` is the
part to read first.
"""
