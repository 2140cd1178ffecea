"""The story that ``kvreplay demo`` tells, and the node that the story is about.

A user of kvreplay would write such a node: it imports public names only. Read :mod:`.orders`
first.
"""
