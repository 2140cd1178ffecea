"""What a change of the settings does to keys that clients still repeat, as docs/http.md tells it."""

from __future__ import annotations

from itertools import permutations

import pytest

from support.http_apps import KEY, Web

QUOTED = f'"{KEY}"'


@pytest.mark.parametrize(("before", "after"), [*permutations(("ietf", "stripe", "acp"), 2)])
def test_another_profile_makes_all_keys_new(plain: Web, before: str, after: str) -> None:
    replay = plain.replay(ttl="24h")
    old, new = (plain.serve(replay=replay, profile=profile) for profile in (before, after))
    assert [old.post(field=QUOTED).is_replay for _ in range(2)] == [False, True]
    assert [new.post(field=QUOTED).is_replay for _ in range(2)] == [False, True]
    assert (len(old.runs), len(new.runs)) == (1, 1)


def test_from_bare_keys_to_stripe_the_keys_are_the_same(plain: Web) -> None:
    replay = plain.replay(ttl="24h")
    old = plain.serve(replay=replay, bare_keys=True)
    assert not old.post(field=KEY).is_replay
    assert plain.serve(replay=replay, profile="stripe").post(field=KEY).is_replay


@pytest.mark.parametrize(("profile", "slug"), [("ietf", "key-reused"), ("acp", None)])
def test_another_path(plain: Web, profile: str, slug: str | None) -> None:
    service = plain.serve(replay=plain.replay(ttl="24h"), profile=profile)
    service.post("/payments")
    reply = service.post("/v2/payments")
    assert (reply.slug, reply.is_replay) == (slug, False)
    assert len(service.runs) == (1 if slug else 2)
