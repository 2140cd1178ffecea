"""The benchmarks: one file a question, each beside its floor or rival in the same run.

``pytest benchmarks`` runs them, ``--short`` each once on small sizes; ``python -m benchmarks`` runs
the lot and writes the tables and charts in ``docs/``.
"""
