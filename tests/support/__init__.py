"""What several tests share: engines, clocks, children, waiting, and programs that run as processes.

A helper is here once. What only one file needs is in that file.
"""
