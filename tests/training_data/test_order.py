"""The order of epochs, whichever format: every record once, and exactly resumable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_model.training.data.document import Source
from flamingo_model.training.data.source import open_source
from training_data.made import jsonl, pairs, picture, records, tar, write

NUMBER = 23


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Each holds NUMBER records; the shards are of unequal size, one empty and one damaged."""
    folder = tmp_path_factory.mktemp("order")
    rows = [{"parts": [{"text": str(number)}]} for number in range(NUMBER)]
    cut = jsonl(folder / "a.jsonl", rows[:5]), jsonl(folder / "b.jsonl", rows[5:])
    for number in range(NUMBER):
        write(folder / f"classes/{number % 3}/{number}.png", picture(number))
    bounds = [0, 9, 9, 10, 17, NUMBER - 1]
    for at, (first, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        tar(folder / f"shards/{at}.tar", pairs(range(first, end)))
    write(folder / "shards/5.tar", b"no tar")
    table = "image,caption\n" + "".join(f"a.png,{number}\n" for number in range(NUMBER))
    return {
        "jsonl": open_source(str(jsonl(folder / "c.jsonl", rows))),
        "two files": open_source(f"{cut[0].parent}/{{a,b}}.jsonl"),
        "csv": open_source(str(write(folder / "t.csv", table))),
        "folder": open_source(str(folder / "classes")),
        "shards": open_source(str(folder / "shards"), mix=2),
        "one shard at a time": open_source(f"{folder}/shards/{{0..5}}.tar", mix=1),
        "all shards": open_source(f"{folder}/shards/*.tar", mix=99),
    }


NAMES = ("jsonl", "two files", "csv", "folder", "shards", "one shard at a time", "all shards")
SMALL = st.integers(0, 2**32)


def places(source: Source, seed: int, epoch: int, start: int = 0) -> list[str]:
    return [record.place for record in records(source, start, seed, epoch)]


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SMALL, epoch=SMALL, start=st.integers(0, NUMBER + 3))
def test_each_record_comes_once_an_epoch_and_a_start_is_a_skip(
    sources: dict[str, Source], name: str, seed: int, epoch: int, start: int
) -> None:
    whole = places(sources[name], seed, epoch)
    assert len(whole) == NUMBER and set(Counter(whole).values()) == {1}
    assert places(sources[name], seed, epoch, start) == whole[start:]
    assert places(sources[name], seed, epoch) == whole


@pytest.mark.parametrize("name", NAMES)
def test_epochs_and_seeds_have_orders_of_their_own(sources: dict[str, Source], name: str) -> None:
    orders = [places(sources[name], *key) for key in ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0))]
    assert len({tuple(order) for order in orders}) == 5
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_the_order_stays_what_it_was_when_runs_were_saved(sources: dict[str, Source]) -> None:
    """A resumed run may have begun with an older version of this program."""
    lines = [int(place.partition(":")[2]) for place in places(sources["jsonl"], 3, 1)]
    assert lines[:8] == [14, 11, 12, 3, 21, 15, 10, 6]
    assert places(sources["shards"], 3, 1)[:3] == ["2.tar:0009", "0.tar:0002", "0.tar:0004"]


def test_records_of_shards_that_are_open_together_are_mixed(sources: dict[str, Source]) -> None:
    shards = [place.partition(":")[0] for place in places(sources["all shards"], 0, 0)]
    changes = sum(one != other for one, other in zip(shards, shards[1:], strict=False))
    assert changes > 8
    alone = [place.partition(":")[0] for place in places(sources["one shard at a time"], 0, 0)]
    assert sum(one != other for one, other in zip(alone, alone[1:], strict=False)) == 4


def test_passing_over_records_opens_no_pictures(tmp_path: Path) -> None:
    """Their files are not even there."""
    rows = [{"parts": [{"image": f"{at}.png"}, {"text": "a"}]} for at in range(NUMBER)]
    source = open_source(str(jsonl(tmp_path / "a.jsonl", rows)))
    assert len(records(source, NUMBER - 1)) == 1
