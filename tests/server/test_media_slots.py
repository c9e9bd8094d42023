"""The engine's media cache: which picture is in which slot, and for how long."""

import random

import pytest

from fakes import make_request
from flamingo_server.engine.media_cache import LatentsCache, MediaCache
from flamingo_server.engine.request import Request


def every(request: Request) -> set[int]:
    return set(range(len(request.prompt.media)))


def run(cache: MediaCache, *digests: str, fails: bool = False) -> Request:
    """Pins, and fills unless computing `fails`."""
    request = make_request("a", *digests)
    assert cache.can_pin(request, every(request))
    cache.pin(request, every(request))
    if not fails:
        cache.filled.update(m.digest for m in cache.missing([request]))
    return request


def test_a_picture_seen_before_is_a_hit_in_the_same_slot() -> None:
    cache = MediaCache(4)
    first, second = run(cache, "x"), run(cache, "x")
    assert first.slots == second.slots and not cache.missing([second])
    assert (first.cached_media, second.cached_media) == (0, 1)
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_slot_is_kept_after_its_request_has_ended() -> None:
    cache = MediaCache(4)
    cache.unpin(run(cache, "x"))
    assert run(cache, "x").cached_media == 1


def test_a_picture_twice_in_a_prompt_takes_one_slot() -> None:
    cache = MediaCache(2)
    request = run(cache, "x", "y", "x")
    assert request.slots[0] == request.slots[2] != request.slots[1]
    cache.unpin(request)
    cache.check_integrity()


def test_requests_of_one_step_compute_a_shared_picture_once() -> None:
    cache = MediaCache(4)
    requests = [run(cache, "x", "y", fails=True), run(cache, "y", "z", fails=True)]
    assert [m.digest for m in cache.missing(requests)] == ["x", "y", "z"]


def test_the_least_recently_used_picture_is_evicted() -> None:
    cache = MediaCache(2)
    for digest in ("x", "y", "x", "z"):
        cache.unpin(run(cache, digest))
    assert list(cache.slot_of) == ["x", "z"] and "y" not in cache.filled
    cache.check_integrity()


def test_a_pinned_picture_is_never_evicted() -> None:
    cache = MediaCache(2)
    held = run(cache, "x")
    for digest in "yzw":
        cache.unpin(run(cache, digest))
    assert cache.slot_of["x"] == held.slots[0]
    assert not cache.can_pin(make_request("a", "p", "q"), {0, 1})


def test_a_request_never_evicts_its_own_pictures() -> None:
    cache = MediaCache(2)
    cache.unpin(run(cache, "x"))
    request = run(cache, "new", "x")
    assert len(set(request.slots.values())) == 2 and request.cached_media == 1


def test_a_picture_that_was_never_computed_gives_its_slot_back() -> None:
    cache = MediaCache(1)
    cache.unpin(run(cache, "bad", fails=True))
    assert cache.free == [0] and run(cache, "good").slots == {0: 0}


def test_a_slot_stays_while_another_request_waits_for_the_picture() -> None:
    cache = MediaCache(1)
    first, second = run(cache, "x", fails=True), run(cache, "x", fails=True)
    cache.unpin(first)
    assert cache.missing([second]) and cache.slot_of["x"] == second.slots[0]


def test_what_only_cached_tokens_look_at_is_neither_pinned_nor_computed() -> None:
    cache = MediaCache(1)
    request = make_request("a", "x", "y", "z")
    assert not cache.can_pin(request, {1, 2}) and cache.can_pin(request, {2})
    cache.pin(request, {2})
    assert request.slots.keys() == {2} and [m.digest for m in cache.missing([request])] == ["z"]
    assert request.cached_media == 2


def test_integrity_sees_a_forgotten_pin() -> None:
    cache = MediaCache(1)
    run(cache, "x")
    with pytest.raises(AssertionError, match="pins leaked"):
        cache.check_integrity()


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_is_lost_or_overwritten_whatever_comes_and_goes(seed: int) -> None:
    cache, dice, running = MediaCache(6), random.Random(seed), list[Request]()
    for _ in range(80):
        digests = [str(dice.randint(0, 12)) for _ in range(dice.randint(0, 3))]
        if cache.can_pin(make_request("a", *digests), set(range(len(digests)))):
            running.append(run(cache, *digests, fails=dice.random() < 0.2))
        if running and dice.random() < 0.6:
            cache.unpin(running.pop(dice.randrange(len(running))))
        for request in running:
            digests = [m.digest for m in request.prompt.media]
            assert request.slots == {i: cache.slot_of[d] for i, d in enumerate(digests)}
    for request in running:
        cache.unpin(request)
    cache.check_integrity()


def test_latents_are_bounded_by_bytes_oldest_out_first() -> None:
    cache = LatentsCache[str](10, len)
    for digest in ("aaaa", "bbbb"):
        cache.put(digest, digest)
    cache.get("aaaa")
    cache.put("cccc", "cccc")
    assert list(cache.entries) == ["aaaa", "cccc"] and cache.num_bytes == 8


def test_latents_larger_than_the_cache_evict_nobody() -> None:
    cache = LatentsCache[str](3, len)
    cache.put("x", "abc")
    cache.put("y", "long latents")
    assert list(cache.entries) == ["x"] and cache.num_bytes == 3
