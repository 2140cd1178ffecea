"""What an operator asks of a store from outside: look, count, find, check, move aside.

The command ``kvreplay`` prints what comes of it. Nothing here makes a store, or shows a payload.
"""

from kvreplay._inspection.checking import QUARANTINE, Bad, check, quarantine
from kvreplay._inspection.condition import Condition, Inspection, Owner
from kvreplay._inspection.copying import copy_to_sqlite
from kvreplay._inspection.counting import Counts, Namespace, count
from kvreplay._inspection.entries import (
    Seen,
    is_empty,
    replay_namespaces,
    seen_in,
)
from kvreplay._inspection.finding import (
    Filter,
    Page,
    find_digest,
    find_key,
    matching,
    page_of,
)
from kvreplay._inspection.opening import (
    become_owner,
    existing,
    outlives,
    path_of,
    shown,
    url_of,
)
from kvreplay._inspection.ownership import acting_as
from kvreplay._inspection.told import datetime_of, iso, request_of_http, told, told_payload

__all__ = [
    "QUARANTINE",
    "Bad",
    "Condition",
    "Counts",
    "Filter",
    "Inspection",
    "Namespace",
    "Owner",
    "Page",
    "Seen",
    "acting_as",
    "become_owner",
    "check",
    "copy_to_sqlite",
    "count",
    "datetime_of",
    "existing",
    "find_digest",
    "find_key",
    "is_empty",
    "iso",
    "matching",
    "outlives",
    "page_of",
    "path_of",
    "quarantine",
    "replay_namespaces",
    "request_of_http",
    "seen_in",
    "shown",
    "told",
    "told_payload",
    "url_of",
]
