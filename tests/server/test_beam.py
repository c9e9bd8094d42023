"""Beams over random models: what is committed stays, and is how the winner begins."""

from __future__ import annotations

import copy
import itertools
import math
import os.path
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from beams import LogProbs, finished
from flamingo_server.engine.beam import Beam, BeamOptions, BeamSearch, Hypothesis, never
from flamingo_server.engine.detokenize import Detokenizer

STOP = 0
SPELLING = [b"", b"a", b"b", b"ab", b"\xc3", b"\xa9", b" b", b"c"]  # STOP says nothing
VOCAB = len(SPELLING)
PROMPT_LENGTH = 5


@dataclass(frozen=True)
class Markov:
    """Logits that depend on the last `order` tokens alone; now and then a token is banned.

    The fewer `likely` tokens stand out and the more they do, the earlier beams agree.
    """

    seed: int
    order: int = 2
    spread: float = 2.0
    banned: float = 0.0
    vocab: int = VOCAB

    def __call__(self, beams: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor([self.row(ids) for ids in beams], dtype=torch.float64).log_softmax(-1)

    def row(self, ids: tuple[int, ...]) -> list[float]:
        draw = random.Random(repr((self.seed, ids[max(0, len(ids) - self.order) :])))
        logits = [draw.gauss(0, self.spread) for _ in range(self.vocab)]
        bans = [draw.random() < self.banned for _ in range(self.vocab)]
        if all(bans):
            return logits
        return [-math.inf if ban else x for x, ban in zip(logits, bans, strict=True)]


def decode(ids: Sequence[int]) -> str:
    return b"".join(SPELLING[i] for i in ids).decode(errors="replace")


def text_before(stop: Sequence[str], ids: Sequence[int]) -> str:
    whole = decode(ids)
    return whole[: min([at for s in stop if (at := whole.find(s)) >= 0], default=None)]


models = st.builds(
    Markov,
    seed=st.integers(0, 2**32),
    order=st.sampled_from([0, 1, 2, 99]),
    spread=st.sampled_from([0.2, 1.0, 3.0, 8.0]),
    banned=st.sampled_from([0.0, 0.0, 0.5]),
)


@st.composite
def options(draw: st.DrawFn, widest: int = 6) -> BeamOptions:
    width = draw(st.integers(1, widest))
    return BeamOptions(
        num_beams=width,
        n=draw(st.integers(1, width)),
        max_tokens=draw(st.integers(1, 14)),
        length_penalty=draw(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 2.0, 8.0])),
        early_stopping=draw(st.sampled_from([True, False, "never"])),
        score_rule=draw(st.sampled_from(["generated", "total"])),
    )


stops = st.lists(st.sampled_from(["ab", "b", "ca", "é", "aa b", "bbb"]), max_size=2)


def new_search(options: BeamOptions, stop: Sequence[str] = ()) -> BeamSearch:
    def ends_text(ids: Sequence[int]) -> bool:
        return any(s in decode(ids) for s in stop)

    return BeamSearch(options, PROMPT_LENGTH, [STOP], ends_text if stop else never)


@given(models, options(), stops)
def test_a_committed_prefix_is_never_taken_back(
    model: Markov, options: BeamOptions, stop: list[str]
) -> None:
    """At every step it is how the best hypothesis begins, should the search be cut off there."""
    search = new_search(options, stop)
    while not search.is_done:
        committed = search.committed
        search.step(model([beam.token_ids for beam in search.live]))
        assert search.committed[: len(committed)] == committed
        for ids in (search.results()[0].token_ids, search.best):
            assert ids[: len(search.committed)] == search.committed
    assert search.committed == search.results()[0].token_ids


@given(models, options(), stops)
def test_joined_commits_are_the_text_of_the_winner(
    model: Markov, options: BeamOptions, stop: list[str]
) -> None:
    """The detokenizer holds back halves of characters and what may become a stop string."""
    search, detokenizer, text, num_pushed = (
        new_search(options, stop),
        Detokenizer(decode, stop),
        "",
        0,
    )
    while not search.is_done:
        search.step(model([beam.token_ids for beam in search.live]))
        for token_id in search.committed[num_pushed:]:
            text += detokenizer.push(token_id)
        num_pushed = len(search.committed)
        assert text_before(stop, search.results()[0].token_ids).startswith(text)
    text += detokenizer.finish()
    [winner, *_] = search.results()
    assert text == text_before(stop, winner.token_ids)
    assert detokenizer.token_ids == list(winner.token_ids)


@given(models, options(), stops)
def test_the_committed_prefix_is_the_longest_that_all_contenders_share(
    model: Markov, options: BeamOptions, stop: list[str]
) -> None:
    """Computed from scratch, by the definition: what it costs must not change what it is."""
    search = new_search(options, stop)
    while not search.is_done:
        search.step(model([beam.token_ids for beam in search.live]))
        able = [h.token_ids for h in search.ended[:1]]
        for beam in search.live:
            lengths = range(len(beam.token_ids), options.max_tokens + 1)
            added = PROMPT_LENGTH if options.score_rule == "total" else 0
            reachable = max(beam.score / (n + added) ** options.length_penalty for n in lengths)
            if not search.ended or reachable > search.ended[0].score:
                able.append(beam.token_ids)
        assert search.committed == tuple(os.path.commonprefix(able))


@given(models, options(), st.integers(0, 10))
def test_whatever_holds_back_the_commit_could_still_win(
    model: Markov, options: BeamOptions, num_steps: int
) -> None:
    """Let one live beam go on for free, at the length that flatters it, and all others die."""
    penalty = max(options.length_penalty, 0.0)
    search = new_search(replace(options, early_stopping="never", length_penalty=penalty))
    for _ in range(num_steps):
        if not search.is_done:
            search.step(model([beam.token_ids for beam in search.live]))
    contenders = search.contenders()
    for row, beam in enumerate(search.live):
        wins = forced(copy.deepcopy(search), row, STOP if penalty == 0 else 1)
        assert (wins[: len(beam.token_ids)] == beam.token_ids) == (beam.token_ids in contenders)


def forced(search: BeamSearch, row: int, token_id: int) -> tuple[int, ...]:
    """Who wins when that row alone goes on, with that token at no cost."""
    while not search.is_done:
        scores = torch.full((len(search.live), VOCAB), -math.inf, dtype=torch.float64)
        scores[row, token_id], row = 0.0, 0
        search.step(scores)
    return search.results()[0].token_ids


@given(models, options(widest=1))
def test_one_beam_is_greedy(model: Markov, options: BeamOptions) -> None:
    expected: list[int] = []
    while len(expected) < options.max_tokens and STOP not in expected:
        expected.append(int(model([tuple(expected)])[0].argmax()))
    [found] = finished(new_search(options), model)
    assert list(found.token_ids) == expected
    assert found.finish_reason == ("stop" if STOP in expected else "length")


@given(
    st.integers(0, 2**32),
    st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["generated", "total"]),
)
def test_beams_enough_for_all_sequences_find_the_best_of_them(
    seed: int, penalty: float, rule: Any
) -> None:
    """Of all 15 ways to end in three of three tokens, scored one by one."""
    model = Markov(seed, order=99, vocab=3)
    options = BeamOptions(16, 16, 3, penalty, "never", rule)
    found = finished(new_search(options), model)
    expected = sorted((scored(model, ids, options) for ids in sequences(3)), key=lambda h: -h.score)
    assert [h.token_ids for h in found] == [h.token_ids for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected])


def sequences(length: int) -> list[tuple[int, ...]]:
    """All that end in STOP or are that long, of the tokens STOP, 1 and 2."""
    found = []
    for size in range(length):
        for start in itertools.product([1, 2], repeat=size):
            found += [(*start, last) for last in range(3) if last == STOP or size == length - 1]
    return found


def scored(model: LogProbs, ids: tuple[int, ...], options: BeamOptions) -> Hypothesis:
    total = sum(float(model([ids[:at]])[0][ids[at]]) for at in range(len(ids)))
    length = len(ids)
    if options.score_rule == "total":
        length = PROMPT_LENGTH + len([i for i in ids if i != STOP])
    reason: Any = "stop" if STOP in ids else "length"
    return Hypothesis(ids, total / length**options.length_penalty, reason)


@given(models, options(), stops)
def test_results_and_live_beams_are_sorted_and_no_two_alike(
    model: Markov, options: BeamOptions, stop: list[str]
) -> None:
    search = new_search(options, stop)
    while not search.is_done:
        parents = search.step(model([beam.token_ids for beam in search.live]))
        assert len(parents) == len(search.live) <= options.num_beams
        for ranked in (search.live, search.results()):
            scores = [one.score for one in ranked]
            assert scores == sorted(scores, reverse=True)
            assert len({one.token_ids for one in ranked}) == len(ranked)
    assert not search.live and 1 <= len(search.results()) <= options.n


@given(models, options())
def test_parents_tell_whose_cache_each_live_beam_continues(
    model: Markov, options: BeamOptions
) -> None:
    search = new_search(options)
    while not search.is_done:
        before = search.live
        parents = search.step(model([beam.token_ids for beam in before]))
        starts = [before[parent].token_ids for parent in parents]
        assert [beam.token_ids[:-1] for beam in search.live] == starts


def log(*chances: dict[int, float]) -> Tensor:
    """One row a beam: probabilities by token, all others banned."""
    rows = torch.zeros(len(chances), VOCAB, dtype=torch.float64)
    for row, told in zip(rows, chances, strict=True):
        for token_id, chance in told.items():
            row[token_id] = chance
    return rows.log()


def test_tokens_are_committed_as_soon_as_all_beams_agree() -> None:
    search = BeamSearch(BeamOptions(2), 1, [STOP])
    search.step(log({1: 0.6, 2: 0.4}))
    assert search.committed == ()
    search.step(log({3: 0.5, 4: 0.4}, {3: 0.1}))  # both live beams descend from the first
    assert search.committed == (1,)


def test_a_beam_that_cannot_win_any_more_holds_nothing_back() -> None:
    search = BeamSearch(BeamOptions(2, length_penalty=0.0, early_stopping="never"), 1, [STOP])
    search.step(log({1: 0.6, 2: 0.2}))
    search.step(log({STOP: 0.9, 3: 0.01}, {3: 1.0}))
    assert search.live[0].token_ids == (2, 3)  # 0.2 against 0.54 that ended
    assert search.committed == (1, STOP) and not search.is_done


def test_a_length_penalty_keeps_the_same_beam_in_the_race() -> None:
    """It has ten tokens to dilute its 0.2 over; the one that ended had two."""
    search = BeamSearch(BeamOptions(2, max_tokens=10, early_stopping="never"), 1, [STOP])
    search.step(log({1: 0.6, 2: 0.2}))
    search.step(log({STOP: 0.9, 3: 0.01}, {3: 1.0}))
    assert search.committed == ()


def test_a_search_cut_off_counts_its_live_beams_as_ended_by_length() -> None:
    search = BeamSearch(BeamOptions(2, 2), 1, [STOP])
    assert search.results() == [Hypothesis((), 0.0, "length")] and search.best == ()
    search.step(log({1: 0.6, STOP: 0.3}))
    assert [(h.token_ids, h.finish_reason) for h in search.results()] == [
        ((1,), "length"),
        ((STOP,), "stop"),
    ]


def test_beams_whose_every_token_is_banned_end_where_they_are() -> None:
    search = BeamSearch(BeamOptions(2, 2), 1, [STOP])
    search.step(log({1: 0.6, 2: 0.3}))
    assert search.step(log({}, {})) == [] and search.is_done
    assert [(h.token_ids, h.finish_reason) for h in search.results()] == [
        ((1,), "length"),
        ((2,), "length"),
    ]


def test_what_ended_well_is_preferred_to_beams_that_cannot_go_on() -> None:
    search = BeamSearch(BeamOptions(2, 2), 1, [STOP])
    search.step(log({1: 0.9, STOP: 0.1}))
    search.step(log({}))
    assert [h.token_ids for h in search.results()] == [(STOP,)]  # fewer than n: no other is legal


def test_of_equals_the_one_that_ended_first_wins() -> None:
    search = BeamSearch(BeamOptions(2, 2, length_penalty=0.0, early_stopping=True), 1, [STOP])
    search.step(log({STOP: 0.5, 1: 0.5}))
    assert search.committed == search.best == (STOP,)  # though (1,) lives and scores the same
    search.step(log({STOP: 1.0}))
    assert [h.token_ids for h in search.results()] == [(STOP,), (1, STOP)]


@pytest.mark.parametrize("stopping", [False, "never"])
def test_a_live_beam_that_can_only_draw_level_ends_the_search(stopping: Any) -> None:
    search = BeamSearch(BeamOptions(2, 2, 9, 0.0, stopping), 1, [STOP])
    search.step(log({STOP: 0.5, 1: 0.5}))
    search.step(log({STOP: 0.5, 3: 0.5}))
    assert search.is_done


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_log_probabilities_are_refused(bad: float) -> None:
    search, scores = BeamSearch(BeamOptions(2), 1, [STOP]), log({1: 1.0})
    scores[0, 3] = bad
    with pytest.raises(ValueError, match="log-probabilities"):
        search.step(scores)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 4}, "n must be from 1 to num_beams"),
        ({"n": 0}, "n must be from 1 to num_beams"),
        ({"num_beams": 0, "n": 0}, "n must be from 1 to num_beams"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"length_penalty": math.nan}, "length_penalty must be within"),
        ({"length_penalty": -33.0}, "length_penalty must be within"),
        ({"early_stopping": "always"}, "early_stopping is"),
        ({"early_stopping": 1}, "early_stopping is"),
        ({"score_rule": "mean"}, "score_rule is"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeamOptions(**{"num_beams": 3, **wrong})


@pytest.mark.parametrize("penalty", [-32.0, 32.0])
def test_the_strongest_penalties_overflow_nothing(penalty: float) -> None:
    search = BeamSearch(BeamOptions(2, length_penalty=penalty, score_rule="total"), 10**6, [STOP])
    search.live = [Beam((1,), -1e6)]
    assert all(map(math.isfinite, [search.attainable(search.live[0]), search.results()[0].score]))
