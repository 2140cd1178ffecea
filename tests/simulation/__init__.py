"""A simulator of the replay protocol: every schedule of a few requests for one key.

``flows.py`` makes the flow generators of ``kvreplay/_protocol/flow.py`` values that can be branched,
``scenario.py`` says who asks for what and what may go wrong, ``world.py`` is one state of store,
processes and ledger, ``moves.py``, ``answers.py`` and ``joined.py`` what can happen next,
``invariants.py`` what must never be seen, ``explore.py`` walks all of it, and ``planted.py`` breaks
the protocol on purpose. ``played.py`` plays random schedules on real stores. Each place has a clock of its own, which
may be ahead of another: ``test_clocks.py`` says by how much.

Callers that are alike begin in one order. The others are the same schedules under other names: they are counted, and
not walked.
"""
