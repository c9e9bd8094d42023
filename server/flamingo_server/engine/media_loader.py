"""Fills the slots of pictures that are new: latents from the cache or the encoder, then keys and
values, projected once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import Tensor

from .latents_store import LatentsStore
from .media_cache import LatentsCache, MediaCache
from .request import Request
from .runner import Runner

logger = logging.getLogger("flamingo_server.engine")


class MediaLoader:
    """Between the accounting of `MediaCache` and the tensors of `Runner`.

    Latents are looked for in memory, then on disk if there is a `store`, and made otherwise.
    """

    def __init__(
        self,
        runner: Runner,
        media: MediaCache,
        latents_bytes: int,
        store: LatentsStore | None = None,
    ) -> None:
        self.runner, self.media, self.store = runner, media, store
        self.latents: LatentsCache[Tensor] = LatentsCache(
            latents_bytes, lambda t: t.numel() * t.element_size()
        )

    def load(self, requests: list[Request], at_once: int) -> list[tuple[Request, Exception]]:
        """Encodes at most `at_once` pictures, all together; then says who has all of theirs.

        If that fails one request at a time is tried, to find and return those whose media cannot.
        """
        waiting = [r for r in requests if not r.has_media]
        try:
            self.fill(waiting, at_once)
        except Exception:
            logger.exception("encoding a batch of media failed; trying each request alone")
            return list(self.load_apart(waiting, at_once))
        return []

    def load_apart(
        self, requests: list[Request], at_once: int
    ) -> Iterator[tuple[Request, Exception]]:
        for request in requests:
            try:
                self.fill([request], at_once)
            except Exception as error:
                yield request, error

    def fill(self, requests: list[Request], at_once: int) -> None:
        """Pictures that several requests share are encoded once, those of equal shape together."""
        missing = self.media.missing(requests)
        known = {m.digest: self.find(m.digest) for m in missing}
        unseen = [m for m in missing if known[m.digest] is None][:at_once]
        for media, latents in zip(unseen, self.runner.encode(unseen), strict=True):
            known[media.digest] = latents
            self.latents.put(media.digest, latents)
            if self.store:
                self.store.put(media.digest, latents)
        for adapter in dict.fromkeys(m.adapter for m in missing):
            theirs = [m.digest for m in missing if m.adapter is adapter]
            found = {digest: t for digest in theirs if (t := known[digest]) is not None}
            if found:
                slots = [self.media.slot(digest) for digest in found]
                self.runner.fill_slots(slots, list(found.values()), adapter)
                self.media.filled.update(found)
        for request in requests:
            request.has_media = not self.media.missing([request])

    def find(self, digest: str) -> Tensor | None:
        found = self.latents.get(digest)
        if found is None and self.store and (read := self.store.get(digest)) is not None:
            found = self.runner.to_device(read)
            self.latents.put(digest, found)
        return found
