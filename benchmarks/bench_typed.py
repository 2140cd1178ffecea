"""What does a typed answer cost, beside an untyped one and the library's own call?

The least is a hit that gives a dict, and then what its caller would write: ``cattrs.structure`` or
``model_validate`` of that dict.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import cattrs
import pydantic
import pytest

from benchmarks.conftest import Sizes
from benchmarks.measure import Bound, calling, in_turn
from benchmarks.workload import (
    NAMESPACE,
    PARAMS,
    RESPONSE,
    SCOPE,
    never,
    request_id,
    respond,
    url_of,
)
from kvreplay import Replay, open_store
from kvreplay._typed.codecs import codec_of

UNTYPED = (SCOPE, request_id(0))
TYPED = (SCOPE, request_id(1))
Note = Callable[..., None]


@attrs.frozen
class Invoice:
    payment_hash: str
    bolt11: str


class InvoiceModel(pydantic.BaseModel):
    payment_hash: str
    bolt11: str


LIBRARIES: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "attrs": (Invoice, lambda data: cattrs.structure(data, Invoice)),
    "pydantic": (InvoiceModel, InvoiceModel.model_validate),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_typed_hit(benchmark: Any, note: Note, sizes: Sizes, library: str, folder: Path) -> None:
    cls, structure = LIBRARIES[library]
    with open_store(url_of("lmdb", folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        replay.execute(UNTYPED, PARAMS, respond)
        replay.execute(TYPED, PARAMS, lambda: cls(**RESPONSE), returns=cls)

        def hit() -> Any:
            return replay.execute(TYPED, PARAMS, never, returns=cls)

        def untyped() -> Any:
            return replay.execute(UNTYPED, PARAMS, never)

        assert hit().response == cls(**RESPONSE)
        data = untyped().response
        bound = Bound()
        own, raw, call = in_turn(
            benchmark,
            bound.of(calling(hit, sizes.calls)),
            calling(untyped, sizes.calls),
            calling(lambda: structure(data), sizes.calls),
            rounds=sizes.rounds,
        )
    note(
        f"typed hit/{library}",
        {
            "µs": own * 1e6,
            "untyped µs": raw * 1e6,
            "the library's call µs": call * 1e6,
            "x both": own / (raw + call),
            "bound by": str(bound),
        },
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_typed_decoding(benchmark: Any, note: Note, sizes: Sizes, library: str) -> None:
    """The codec's own part of it, beside the library's own call."""
    cls, structure = LIBRARIES[library]
    codec = codec_of(cls, "the benchmark returns")
    assert codec is not None
    data = codec.encode(cls(**RESPONSE))
    assert codec.decode(data) == structure(data)
    own, call = in_turn(
        benchmark,
        calling(lambda: codec.decode(data), sizes.calls),
        calling(lambda: structure(data), sizes.calls),
        rounds=sizes.rounds,
    )
    note(
        f"typed decoding/{library}",
        {"µs": own * 1e6, "the library's call µs": call * 1e6, "x the library's call": own / call},
    )
