"""How much the model may do. The same bounds make a scenario of the simulation."""

from __future__ import annotations

import attrs


@attrs.frozen
class Bounds:
    """How often each thing may happen in the model. Times are ticks."""

    ticks: int = 2
    crashes: int = 1
    renewals: int = 1
    lease: int = 2
    skew: int = 1
    on_time: bool = False

    def defines(self, bug: int = 0) -> list[str]:
        values = {**attrs.asdict(self), "bug": bug}
        return [f"-D{name.upper()}={int(value)}" for name, value in values.items()]


ANY_TIME = Bounds()
ON_TIME = Bounds(ticks=4, lease=3, renewals=3, on_time=True)
"""With three renewals a lease, of which none fails and none takes time, this skew is the largest."""
