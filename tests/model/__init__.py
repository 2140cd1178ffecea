"""A model of the protocol for spin, and its traces on the real flows.

``replay.pml`` is the model, ``spin.py`` has spin verify it and walk at random, and ``traces.py`` makes
the steps of a trace on the real flows, by the moves of ``simulation/``.
"""
