"""The benchmarks: one file for each question. Each is measured beside its floor or its rival.

``pytest benchmarks`` runs them; with ``--short`` each runs once, on small sizes. ``python -m
benchmarks`` runs them all and writes the tables and charts in ``docs/``.
"""
