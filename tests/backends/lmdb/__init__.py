"""The LMDB store: each known trap of LMDB, on real files, with real processes and faults.

What could only be made with a stub says so. Who runs this without the right to mount, to
trace or to change the user sees those tests skipped; where ``CI`` is set they fail instead.
"""
