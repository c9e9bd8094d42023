"""The benchmarks' own arithmetic: what is compared with what, and what becomes of failures."""

import pytest

from bench.crowd import in_order
from bench.measure import Figure, Side, Times, alternate, ratio
from bench.ours import intervals, problem_of, steps
from bench.prompts import candidates, prompt
from bench.vocabulary import SIZE, vocabulary, words
from flamingo_client import APIError, FlamingoError, StreamError


@pytest.mark.parametrize(
    ("must", "seen", "is_met"),
    [
        ("≤ 1/20", 0.05, True),
        ("≤ 1/20", 0.051, False),
        ("≥ 10", 10.0, True),
        ("≥ 0.7", 0.69, False),
        ("≤ 0.3 ms", 0.3, True),
        ("", 7.0, None),
        ("≤ 1", None, None),
    ],
)
def test_a_figure_is_held_against_its_bound(
    must: str, seen: float | None, is_met: bool | None
) -> None:
    assert Figure("a figure", must, seen, "").is_met is is_met


def test_sides_take_turns_and_one_that_fails_is_left_out() -> None:
    called = []

    def good(number: int) -> list[float]:
        called.append(("good", number))
        return [2.0 - number]

    def bad(number: int) -> list[float]:
        called.append(("bad", number))
        raise FlamingoError("no such thing")

    sides: dict[str, Side] = {"good": good, "bad": bad}
    times = alternate(sides, 2, lambda doing: None)
    assert called == [("good", 0), ("bad", 0), ("good", 1)]
    assert times["good"] == Times((1.0, 2.0))
    assert times["bad"].problem == "failed: no such thing"


def test_a_ratio_is_of_the_least_times() -> None:
    figure = ratio("", "≤ 1", Times((1.0, 9.0, 9.0)), Times((2.0, 2.0)))
    assert figure.seen == 0.5


def test_a_ratio_with_a_side_that_failed_is_not_seen() -> None:
    figure = ratio("", "≤ 1", Times((1.0,)), Times(problem="not served"))
    assert (figure.seen, figure.how) == (None, "not served")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (APIError(400, "beams are not served", code="not_supported"), "not served"),
        (APIError(404, "Not Found"), "not served"),
        (APIError(422, "out of range"), "failed: out of range (HTTP 422)"),
        (StreamError("it broke"), "failed: it broke"),
    ],
)
def test_only_what_is_not_served_is_called_so(error: Exception, said: str) -> None:
    assert problem_of(error) == said


def test_time_per_token_leaves_the_first_out_and_counts_tokens_not_events() -> None:
    assert intervals(1.0, [(3.0, 1), (4.0, 1), (7.0, 3)]) == (2.0, 1.0)
    assert intervals(1.0, [(3.0, 1)]) == (2.0, 0.0)
    assert steps(lambda num: 5.0 + 0.5 * num, 11) == pytest.approx(0.5)


def test_the_vocabulary_has_the_size_of_opts_and_no_token_twice() -> None:
    tokens = vocabulary()
    assert sorted(tokens.values()) == list(range(SIZE - 2))
    assert {f"Ġ{word}" for word in words()} <= tokens.keys()
    assert len(words()) > 40_000


def test_prompts_of_different_seeds_share_nothing() -> None:
    first, second = prompt(1, 3), prompt(2, 3)
    assert not {*first.pictures} & {*second.pictures}
    assert first == prompt(1, 3) and len(first.pictures) == 4
    assert first.asking(5).pictures == first.pictures
    assert first.showing(5).shots == first.shots
    assert first.showing(5).query.picture != first.query.picture


def test_candidates_are_distinct() -> None:
    assert len({*candidates(0, 1000)}) == 1000


def test_the_order_of_an_answer_is_read_whatever_its_fields_are_called() -> None:
    answer = {"model": "a", "results": [{"candidate": " b", "x": 1.0}, {"candidate": " a"}]}
    assert in_order(answer, {" a", " b"}) == [" b", " a"]
