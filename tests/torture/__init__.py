"""The promises of kvreplay on real processes and disks that fail: ``pytest tests/torture``.

It needs root, loop devices, strace and PID namespaces. Where one is missing a test says what it
did not run; with ``CI=true`` it fails instead. ``--long=10`` kills, cuts and breaks ten times as
often. What was done is counted at the end of the run.
"""
