"""Pictures the model has already seen: latents and cross-attention slots, both by digest.

A slot is pinned while a request uses it. A miss is a re-encode, never an error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from .request import Media, Request

L = TypeVar("L")


class LatentsCache(Generic[L]):
    """Least recently used latents go first once `max_bytes` is passed."""

    def __init__(self, max_bytes: int, size_of: Callable[[L], int]) -> None:
        self.max_bytes, self.size_of = max_bytes, size_of
        self.num_bytes = 0
        self.entries: OrderedDict[str, L] = OrderedDict()

    def get(self, digest: str) -> L | None:
        if digest in self.entries:
            self.entries.move_to_end(digest)
        return self.entries.get(digest)

    def put(self, digest: str, latents: L) -> None:
        if digest in self.entries or self.size_of(latents) > self.max_bytes:
            return
        self.entries[digest] = latents
        self.num_bytes += self.size_of(latents)
        while self.num_bytes > self.max_bytes:
            _, dropped = self.entries.popitem(last=False)
            self.num_bytes -= self.size_of(dropped)


class MediaCache:
    """Which digest is in which slot, and who holds it.

    Of a request only the `wanted` media, by number, are pinned: those that its tokens still have to
    look at. The others have been seen by tokens that are in the cache.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.free = list(range(num_slots - 1, -1, -1))
        self.slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self.pins: dict[str, int] = {}
        self.filled: set[str] = set()
        self.hits = self.misses = 0

    def can_pin(self, request: Request, wanted: set[int]) -> bool:
        digests = {request.prompt.media[i].digest for i in wanted}
        evictable = sum(d not in digests and not self.pins.get(d) for d in self.slot_of)
        return len(digests - self.slot_of.keys()) <= len(self.free) + evictable

    def pin(self, request: Request, wanted: set[int]) -> None:
        """Gives the request a slot for each; those not `filled` must be computed."""
        digests = {i: request.prompt.media[i].digest for i in sorted(wanted)}
        for digest in digests.values():  # first all pins, so that no eviction takes one of these
            self.pins[digest] = self.pins.get(digest, 0) + 1
        misses = sum(digest not in self.filled for digest in digests.values())
        request.cached_media = len(request.prompt.media) - misses
        self.hits += request.cached_media
        self.misses += misses
        request.slots = {i: self.slot(digest) for i, digest in digests.items()}

    def slot(self, digest: str) -> int:
        if digest not in self.slot_of:
            self.slot_of[digest] = self.free.pop() if self.free else self.evict()
        self.slot_of.move_to_end(digest)
        return self.slot_of[digest]

    def evict(self) -> int:
        oldest = next(d for d in self.slot_of if not self.pins.get(d))
        self.filled.discard(oldest)
        return self.slot_of.pop(oldest)

    def missing(self, requests: Iterable[Request]) -> list[Media]:
        """The media of these requests whose slots hold nothing yet, each once."""
        wanted = (r.prompt.media[i] for r in requests for i in r.slots)
        return list({m.digest: m for m in wanted if m.digest not in self.filled}.values())

    def unpin(self, request: Request) -> None:
        for index in request.slots:
            digest = request.prompt.media[index].digest
            self.pins[digest] -= 1
            if not self.pins[digest]:
                del self.pins[digest]
                if digest not in self.filled:  # it failed before it was computed
                    self.free.append(self.slot_of.pop(digest))
        request.slots = {}

    def check_integrity(self) -> None:
        """Slots are free or named once; nothing is pinned when nobody runs."""
        held = sorted([*self.free, *self.slot_of.values()])
        assert held == list(range(self.num_slots)), "media slots leaked"
        assert not self.pins, "pins leaked"
        assert self.filled <= self.slot_of.keys(), "a slot is filled and gone"
