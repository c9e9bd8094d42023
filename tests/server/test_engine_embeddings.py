"""Embeddings between the engine's steps: batched, remembered, and each job's own luck."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from fakes import FakeRunner, ask, drive, make_engine, step
from flamingo_server.engine.engine import Engine, RequestHandle
from flamingo_server.engine.request import Embedded, Event, Media
from flamingo_server.engine.runner import ENCODE_AT_ONCE
from flamingo_server.errors import Draining, EngineFailure


class Eyes(FakeRunner):
    """Sees a picture as the number in its digest; chokes on `bad`, and goes blind on `nan`."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def embed(self, media: list[Media]) -> list[Tensor]:
        digests = [m.digest for m in media]
        if "bad" in digests:
            raise RuntimeError("the vision tower choked")
        self.batches += [digests] if digests else []
        return [torch.full((2,), float(digest)) for digest in digests]


def start(engine: Engine, *digests: str) -> tuple[RequestHandle, list[Event]]:
    pixels, events = np.zeros((1, 2, 2, 3), dtype=np.uint8), list[Event]()
    return engine.embed([Media(pixels, digest) for digest in digests], events.append), events


def numbers(events: list[Event]) -> list[float]:
    (event,) = events
    assert isinstance(event, Embedded)
    return [vector[0] for vector in event.vectors]


def test_pictures_of_several_jobs_are_computed_once_and_together() -> None:
    eyes = Eyes()
    engine = make_engine(eyes)
    jobs = [start(engine, "1", "2"), start(engine, "2", "3", "2")]
    drive(engine)
    assert [numbers(events) for _, events in jobs] == [[1, 2], [2, 3, 2]]
    assert eyes.batches == [["1", "2", "3"]]


def test_a_picture_seen_before_is_not_computed_again() -> None:
    eyes = Eyes()
    engine = make_engine(eyes)
    for digests, cached in ((["1", "2"], 0), (["2", "3"], 1), (["1"], 1)):
        _, events = start(engine, *digests)
        drive(engine)
        assert isinstance(events[0], Embedded) and events[0].num_cached == cached
    assert eyes.batches == [["1", "2"], ["3"]]


def test_a_picture_that_cannot_be_seen_fails_its_own_job_alone() -> None:
    engine = make_engine(Eyes())
    jobs = [start(engine, *digests) for digests in (["1"], ["2", "bad"], ["nan"], ["3"])]
    drive(engine)
    first, choked, blind, last = (events for _, events in jobs)
    assert (numbers(first), numbers(last)) == ([1], [3])
    assert isinstance(choked[0], EngineFailure) and isinstance(blind[0], EngineFailure)
    assert "RuntimeError" in str(choked[0]) and "finite" in str(blind[0])


def test_while_others_wait_for_tokens_few_are_computed_at_a_time() -> None:
    eyes = Eyes()
    engine = make_engine(eyes, media_at_once=2)
    answer = ask(engine, "abcdefgh")
    step(engine, 2)
    _, events = start(engine, *map(str, range(7)))
    drive(engine)
    assert numbers(events) == list(range(7)) and answer.text() == "hgfedcba"
    assert [len(batch) for batch in eyes.batches] == [2, 2, 2, 1]


def test_alone_as_many_are_computed_as_memory_is_meant_for() -> None:
    eyes = Eyes()
    engine = make_engine(eyes)
    start(engine, *map(str, range(ENCODE_AT_ONCE + 1)))
    drive(engine)
    assert [len(batch) for batch in eyes.batches] == [ENCODE_AT_ONCE, 1]


def test_whose_client_has_gone_is_not_computed() -> None:
    eyes = Eyes()
    engine = make_engine(eyes)
    (gone, silent), (_, events) = start(engine, "1"), start(engine, "2")
    gone.cancel()
    gone.cancel()
    drive(engine)
    assert (silent, numbers(events), eyes.batches) == ([], [2], [["2"]])
    assert engine.num_requests == 0


def test_a_stop_leaves_nobody_waiting() -> None:
    engine = make_engine(Eyes())
    _, events = start(engine, "1")
    engine.stop_all()
    assert isinstance(events[0], Draining) and engine.num_requests == 0


def test_an_idle_engine_wakes_for_them() -> None:
    engine = make_engine(Eyes())
    engine.start()
    _, events = start(engine, "1")
    until = time.monotonic() + 5
    while not events and time.monotonic() < until:
        time.sleep(0.005)
    engine.drain(5)
    assert numbers(events) == [1]
