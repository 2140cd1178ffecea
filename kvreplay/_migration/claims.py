"""The requests that are in progress in a source, and what is known of their runs.

A claim's owner is looked up in the owners file of the store that has the claim. A copy of the claim
lies in another store, where that file says nothing: there its lease decides, and then the key is in
doubt. A run that has said that it ended is in doubt in the copy too, at once.
"""

from __future__ import annotations

from typing import Any, Final

from kvreplay._migration.walking import Address
from kvreplay._protocol.keys import name
from kvreplay._protocol.record import State, decode
from kvreplay._runtime.liveness import Liveness, look_up
from kvreplay.errors import ClaimsInProgressError, RecordError

__all__ = ["IN_PROGRESS", "Claims"]

IN_PROGRESS: Final = b"\x9a\x01\x01"
"""How a claim begins: ten fields, version 1, state 1. Other entries may begin so, too."""
_NAMED: Final = 1000
_SHOWN: Final = 10
_SAID: Final = {
    Liveness.RUNNING: "its process runs it",
    Liveness.GONE: "in doubt: its process has ended",
    Liveness.UNKNOWN: "its process is not known here",
}


class Claims:
    """Finds claims among values; remembers at most a thousand of them by name."""

    def __init__(self, source: Any) -> None:
        self.count = 0
        self._named = list[tuple[str, str]]()
        self._owners_file = getattr(source, "owners_file", None)

    def look_at(self, address: Address, value: bytes) -> bool:
        """Say whether this entry is a claim, and note it."""
        if not value.startswith(IN_PROGRESS):
            return False
        try:
            record = decode(value)
        except RecordError:
            return False
        key = record.key
        own = (name(key.scope), name(key.id, key.operation))
        if record.state is not State.IN_PROGRESS or record.claim is None or own != address[1:]:
            return False
        self.count += 1
        if len(self._named) < _NAMED:
            if record.claim.ended_at is not None:
                said = "in doubt: its run has ended"
            else:
                said = _SAID[look_up(record.claim, self._owners_file)]
            self._named.append((key.digest(), said))
        return True

    def error(self, consequence: str) -> ClaimsInProgressError:
        """Return the error that names them."""
        shown = ", ".join(f"{digest} ({said})" for digest, said in self._named[:_SHOWN])
        more = f", and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        return ClaimsInProgressError(
            f"requests are in progress in the source: {shown}{more}; {consequence}: let them end,"
            " or settle them with resolve or release, and migrate again; or migrate them too"
            " (with_claims=True, --with-claims), and they are in doubt in the destination",
            tuple(self._named),
        )
