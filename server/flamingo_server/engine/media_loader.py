"""Fills the slots of pictures that are new: latents from the cache or the encoder, then keys and
values, projected once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import Tensor

from .media_cache import LatentsCache, MediaCache
from .request import Request
from .runner import Runner

logger = logging.getLogger("flamingo_server.engine")


class MediaLoader:
    """Between the accounting of `MediaCache` and the tensors of `Runner`."""

    def __init__(self, runner: Runner, media: MediaCache, latents_bytes: int) -> None:
        self.runner, self.media = runner, media
        self.latents: LatentsCache[Tensor] = LatentsCache(
            latents_bytes, lambda t: t.numel() * t.element_size()
        )

    def load(self, requests: list[Request]) -> list[tuple[Request, Exception]]:
        """All together; if that fails one by one, to find and return those whose media cannot."""
        try:
            self.fill(requests)
        except Exception:
            logger.exception("encoding a batch of media failed; trying each request alone")
            return list(self.load_apart(requests))
        return []

    def load_apart(self, requests: list[Request]) -> Iterator[tuple[Request, Exception]]:
        for request in requests:
            try:
                self.fill([request])
            except Exception as error:
                yield request, error

    def fill(self, requests: list[Request]) -> None:
        """Pictures that several requests share are encoded once, those of equal shape together."""
        missing = self.media.missing(requests)
        if not missing:
            return
        known = {m.digest: self.latents.get(m.digest) for m in missing}
        unseen = [m for m in missing if known[m.digest] is None]
        for media, latents in zip(unseen, self.runner.encode(unseen), strict=True):
            known[media.digest] = latents
            self.latents.put(media.digest, latents)
        slots = [self.media.slot(m.digest) for m in missing]
        self.runner.fill_slots(slots, [t for m in missing if (t := known[m.digest]) is not None])
        self.media.filled.update(m.digest for m in missing)
