"""Pictures the model has already seen: latents and cross-attention slots, both by digest.

A slot is pinned while a request uses it. A miss is a re-encode, never an error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
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
    """Which digest is in which slot, and who holds it."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.free = list(range(num_slots - 1, -1, -1))
        self.slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self.pins: dict[str, int] = {}
        self.filled: set[str] = set()
        self.hits = self.misses = 0

    def can_pin(self, request: Request) -> bool:
        wanted = {media.digest for media in request.prompt.media}
        evictable = sum(d not in wanted and not self.pins.get(d) for d in self.slot_of)
        return len(wanted - self.slot_of.keys()) <= len(self.free) + evictable

    def pin(self, request: Request) -> None:
        """Gives the request a slot for each media; those not `filled` must be computed."""
        digests = [media.digest for media in request.prompt.media]
        for digest in digests:  # first all pins, so that no eviction takes one of these
            self.pins[digest] = self.pins.get(digest, 0) + 1
        request.cached_media = sum(digest in self.filled for digest in digests)
        self.hits += request.cached_media
        self.misses += len(digests) - request.cached_media
        request.slots = [self.slot(digest) for digest in digests]

    def slot(self, digest: str) -> int:
        if digest not in self.slot_of:
            self.slot_of[digest] = self.free.pop() if self.free else self.evict()
        self.slot_of.move_to_end(digest)
        return self.slot_of[digest]

    def evict(self) -> int:
        oldest = next(d for d in self.slot_of if not self.pins.get(d))
        self.filled.discard(oldest)
        return self.slot_of.pop(oldest)

    def missing(self, requests: list[Request]) -> list[Media]:
        """The media of these requests whose slots hold nothing yet, each once."""
        wanted = {m.digest: m for r in requests for m in r.prompt.media}
        return [m for digest, m in wanted.items() if digest not in self.filled]

    def unpin(self, request: Request) -> None:
        for media in request.prompt.media:
            self.pins[media.digest] -= 1
            if not self.pins[media.digest]:
                del self.pins[media.digest]
                if media.digest not in self.filled:  # it failed before it was computed
                    self.free.append(self.slot_of.pop(media.digest))

    def check_integrity(self) -> None:
        """Slots are free or named once; nothing is pinned when nobody runs."""
        held = sorted([*self.free, *self.slot_of.values()])
        assert held == list(range(self.num_slots)), "media slots leaked"
        assert not self.pins, "pins leaked"
        assert self.filled <= self.slot_of.keys(), "a slot is filled and gone"
