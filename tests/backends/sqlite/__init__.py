"""The LMDB store: each known trap of LMDB, on real files, with real processes and faults.

A test says so where only a stub could make the trap. Some tests need the right to mount, to trace
or to change the user: without it they are skipped, and with ``CI=true`` they fail.
"""
