"""Streams of documents: their order, their positions, and bad ones among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count

import numpy as np
import pytest

from flamingo_model.training.config import DatasetConfig
from flamingo_model.training.data.document import BadRecord, Document
from flamingo_model.training.distributed import World
from flamingo_model.training.mixture import Mixture, Position, Stream, TooManyBad
from training.made import ListSource, captions, dataset


def place(document: Document, config: DatasetConfig, rng: np.random.Generator) -> tuple[str, int]:
    """A document's place, and a number drawn for it."""
    return document.place, int(rng.integers(10**9))


def mixture(
    *sources: ListSource,
    world: World | None = None,
    workers: int = 0,
    share: float = 1.0,
    batch: int = 4,
    is_turned: bool = False,
) -> Mixture[tuple[str, int]]:
    streams = [
        Stream(source, dataset(batch=batch, name=f"set{i}"), 7) for i, source in enumerate(sources)
    ]
    return Mixture(streams, place, world or World(), 7, share, is_turned, workers)


def drawn(found: Mixture[tuple[str, int]], steps: Sequence[int]) -> list[list[tuple[str, int]]]:
    return [[item for d in found.draw(step) for item in d.items] for step in steps]


def test_every_document_comes_once_an_epoch() -> None:
    found = [
        place for step in drawn(mixture(ListSource(captions(8))), range(4)) for place, _ in step
    ]
    names = {f"made:{i}" for i in range(8)}
    assert set(found[:8]) == names == set(found[8:])
    assert found[:8] != found[8:]


@pytest.mark.parametrize("after", range(5))
def test_from_a_position_the_same_documents_come_with_the_same_numbers(after: int) -> None:
    source = ListSource(captions(6))
    whole, first, second = mixture(source), mixture(source), mixture(source)
    expected = drawn(whole, range(6))
    drawn(first, range(after))
    second.seek(first.position())
    assert drawn(second, range(after, 6)) == expected[after:]
    assert second.position() == whole.position()


def test_reading_ahead_changes_neither_documents_nor_positions() -> None:
    source = ListSource(captions(6), bad=frozenset({2}))
    ahead, plain = mixture(source, workers=2), mixture(source)
    for step in range(5):
        assert drawn(ahead, [step]) == drawn(plain, [step])
        assert ahead.position() == plain.position()


def test_processes_share_a_batch_and_pass_over_what_is_not_theirs() -> None:
    sources = [ListSource(captions(8)) for _ in range(3)]
    expected = drawn(mixture(sources[0]), range(2))
    shares = [drawn(mixture(sources[r + 1], world=World(rank=r, size=2)), range(2)) for r in (0, 1)]
    for step in range(2):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(expected[step])
    assert len(sources[1].opened) == len(sources[2].opened) == 4


def test_round_robin_takes_one_dataset_a_step() -> None:
    found = mixture(ListSource(captions(4)), ListSource(captions(4)), is_turned=True)
    assert [[d.dataset for d in found.draw(step)] for step in range(4)] == [[0], [1], [0], [1]]


def test_a_bad_record_is_left_out_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    found = mixture(ListSource(captions(8), bad=frozenset({3})))
    with caplog.at_level(logging.WARNING, "flamingo_model.training"):
        steps = drawn(found, range(2))
    assert sum(map(len, steps)) == 7
    assert found.position() == [{"epoch": 0, "start": 8, "seen": 8, "bad": 1}]
    assert "made:3: broken" in caplog.text


def test_a_run_fails_when_more_than_the_allowed_share_is_bad() -> None:
    found = mixture(ListSource(captions(50), bad=frozenset(range(20))), share=0.1)
    with pytest.raises(TooManyBad, match=r"set0: 1\d of \d+ records are bad.*max_bad_share"):
        drawn(found, range(50))


def test_few_bad_records_at_the_start_are_no_share_yet() -> None:
    found = mixture(ListSource(captions(8), bad=frozenset({3})), share=0.01)
    drawn(found, range(2))
    assert found.position()[0]["bad"] == 1


def test_bad_records_are_counted_on_from_where_a_run_stopped() -> None:
    found = mixture(ListSource(captions(8), bad=frozenset({3})), share=0.01)
    found.seek([vars(Position(seen=50, bad=1))])
    with pytest.raises(TooManyBad, match="2 of"):
        drawn(found, range(2))


def test_a_source_without_records_is_said_to_be_empty() -> None:
    with pytest.raises(BadRecord, match="made: no records"):
        next(drawn(mixture(ListSource([])), [step]) for step in count())
