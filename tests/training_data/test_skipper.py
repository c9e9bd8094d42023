"""Bad records are counted, named, and too many of them are the end."""

from __future__ import annotations

import pytest

from flamingo_model.training.data.document import BadRecord
from flamingo_model.training.data.skipper import Skipper, TooManyBad


def bad(number: int) -> BadRecord:
    return BadRecord(f"a.jsonl:{number}: empty text")


def test_the_first_are_named_and_the_rest_counted() -> None:
    said = list[str]()
    skipper = Skipper(1.0, num_named=2, warn=said.append)
    for number in range(5):
        skipper.skip(bad(number))
    assert said == [
        "skipped a.jsonl:0: empty text",
        "skipped a.jsonl:1: empty text",
        "further bad records are counted, not named",
    ]
    assert skipper.summary() == "5 of 5 records are bad (100.000%)"


def test_a_share_of_few_records_means_nothing_yet() -> None:
    skipper = Skipper(0.01, warn=list[str]().append)
    skipper.skip(bad(1))
    skipper.check()
    with pytest.raises(TooManyBad, match=r"1 of 1 records are bad \(100.000%\); at most 1.000%"):
        skipper.check(enough=1)


def test_more_than_the_share_is_too_many_and_the_share_itself_is_not() -> None:
    skipper = Skipper(0.02, seen=199, bad=3, warn=list[str]().append)
    skipper.skip(bad(1))
    skipper.check()
    skipper.count(good=49)
    skipper.skip(bad(2))
    skipper.check()
    skipper.skip(bad(3))
    with pytest.raises(TooManyBad, match="6 of 251"):
        skipper.check()


def test_of_none_allowed_the_first_is_too_many() -> None:
    skipper = Skipper(0, warn=list[str]().append)
    skipper.check()
    skipper.skip(bad(1))
    with pytest.raises(TooManyBad):
        skipper.check()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="max_bad_share"):
        Skipper(share)
