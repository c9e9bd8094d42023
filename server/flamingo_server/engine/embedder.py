"""Embeddings of pictures and films: jobs of their own, worked on between the engine's steps.

They take no place in the scheduler: no tokens, no blocks, no media slots.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import EngineFailure
from .media_cache import LatentsCache
from .request import Embedded, Event, Media
from .runner import Runner

logger = logging.getLogger("flamingo_server.engine")
EMBEDDINGS_BYTES = 32 * 2**20  # of a picture they are a few kilobytes


@dataclass(eq=False)
class EmbedJob:
    """Media to embed. `deliver` is called once on the engine thread, and never raises."""

    media: list[Media]
    deliver: Callable[[Event], None]
    found: dict[str, Tensor] = field(default_factory=dict)  # by digest
    num_cached: int = 0

    def missing(self) -> list[Media]:
        return [m for m in self.media if m.digest not in self.found]

    def answer(self) -> Embedded:
        vectors = [self.found[m.digest].tolist() for m in self.media]
        return Embedded(vectors, self.num_cached)


class Embedder:
    """Jobs in the order they came; pictures of several jobs are computed together."""

    def __init__(self, runner: Runner, max_bytes: int = EMBEDDINGS_BYTES) -> None:
        self.runner = runner
        self.jobs: deque[EmbedJob] = deque()
        self.known: LatentsCache[Tensor] = LatentsCache(
            max_bytes, lambda t: t.numel() * t.element_size()
        )

    def add(self, job: EmbedJob) -> None:
        for media in job.media:
            if (vector := self.known.get(media.digest)) is not None:
                job.found[media.digest] = vector
                job.num_cached += 1
        self.jobs.append(job)

    def advance(self, at_once: int) -> list[tuple[EmbedJob, Event]]:
        """Computes at most `at_once` pictures; the jobs that end by it, each with its answer.

        If that fails one job at a time is tried, to find those whose media cannot.
        """
        failed = dict[EmbedJob, Exception]()
        try:
            self.compute(list(self.jobs), at_once)
        except Exception:
            logger.exception("embedding a batch of media failed; trying each job alone")
            failed = dict(self.compute_apart(at_once))
        ended, left = list[tuple[EmbedJob, Event]](), deque[EmbedJob]()
        for job in self.jobs:
            if job in failed:
                ended.append((job, failed[job]))
            elif not job.missing():
                ended.append((job, job.answer()))
            else:
                left.append(job)
        self.jobs = left
        return ended

    def compute_apart(self, at_once: int) -> Iterator[tuple[EmbedJob, Exception]]:
        for job in self.jobs:
            try:
                self.compute([job], at_once)
            except Exception as error:
                yield job, error

    def compute(self, jobs: list[EmbedJob], at_once: int) -> None:
        unseen = {m.digest: m for job in jobs for m in job.missing()}
        media = list(unseen.values())[:at_once]
        vectors = self.runner.embed(media)
        if not all(torch.isfinite(vector).all() for vector in vectors):
            raise EngineFailure("the vision tower gave numbers that are not finite")
        for one, vector in zip(media, vectors, strict=True):
            self.known.put(one.digest, vector)
            for job in jobs:
                job.found[one.digest] = vector
