"""Closed-ended answers: every candidate scores as it does alone, whatever the trie."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fakes import Answer, drive, score, step, text_ids
from flamingo_server.engine.request import Started
from flamingo_server.errors import DeadlineExceeded, TooLarge
from tiny_engines import KINDS, ask, new_engine, prompt, rank, same, whole
from tiny_engines import alone as sampled

CANDIDATES = [
    text_ids(text)
    for text in ("cat", "car", "ca", "c", "dog", "cat", "a very long candidate", "z", "cart")
]


def expected(kind: str, text: str, *seeds: int, given: list[list[int]]) -> list[list[float]]:
    """Each by a whole pass of its own."""
    asked, found = prompt(text, *seeds), []
    for candidate in given:
        rows = whole(kind, asked, candidate)[len(asked.token_ids) - 1 : -1]
        found.append([float(row[t]) for row, t in zip(rows, candidate, strict=True)])
    return found


def assert_close(answer: Answer, scores: list[list[float]]) -> None:
    assert answer.names == ["Started", "Scored", "Ended"]
    for found, one in zip(answer.scores(), scores, strict=True):
        assert np.allclose(found, one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 3, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_each_candidate_scores_as_it_does_alone(kind: str, at_once: int) -> None:
    engine = new_engine(kind, trie_at_once=at_once)
    answer = rank(engine, CANDIDATES, "what", 0, 1)
    drive(engine)
    assert_close(answer, expected(kind, "what", 0, 1, given=CANDIDATES))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_beside_others_and_after_displacements_are_the_same(kind: str) -> None:
    engine = new_engine(kind, num_blocks=24, max_step_tokens=7, trie_at_once=6)
    answers = [rank(engine, CANDIDATES, "what", i, 1) for i in range(3)]
    plain = ask(engine, "beside", 2)
    for _ in range(30):
        step(engine)
        if engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[-1])
        if engine.scheduler.num_preemptions > 6:
            break
    drive(engine)
    for i, answer in enumerate(answers):
        assert_close(answer, expected(kind, "what", i, 1, given=CANDIDATES))
    assert same(plain, sampled("beside", 2, kind=kind))


def test_single_tokens_take_one_step() -> None:
    engine, single = new_engine(), [[5], [9], [5], [200]]
    answer = rank(engine, single, "what", 0)
    drive(engine)
    assert engine.num_steps == 1
    assert_close(answer, expected("tiny", "what", 0, given=single))


def test_a_prompt_scored_before_is_cached() -> None:
    engine = new_engine()
    for cached in (0, 17):
        answer = rank(engine, CANDIDATES, "what", 0, 1, 2)
        drive(engine)
        [started] = [e for e in answer.events if isinstance(e, Started)]
        assert started.usage.cached_prompt_tokens == cached


def test_examples_in_another_order_share_what_stands_before_them() -> None:
    engine, orders = new_engine(block_size=1), [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
    answers = [rank(engine, CANDIDATES[:3], "what", *order) for order in orders]
    drive(engine)
    for order, answer, cached in zip(orders, answers, (0, 6, 0), strict=True):
        assert_close(answer, expected("tiny", "what", *order, given=CANDIDATES[:3]))
        [started] = [e for e in answer.events if isinstance(e, Started)]
        assert started.usage.cached_prompt_tokens == cached


def test_10_000_candidates_take_bounded_room() -> None:
    dice, most = random.Random(0), 0
    many = [[dice.randint(3, 40) for _ in range(dice.randint(1, 3))] for _ in range(10_000)]
    engine = new_engine(trie_at_once=256, num_blocks=80)
    answer = rank(engine, many, "what", 0)
    while not answer.has_ended:
        step(engine)
        most = max(most, engine.blocks.num_used)
    assert most <= 2 + 256 // 4 + 1
    some = [many.index(dice.choice(many)) for _ in range(20)]
    found = answer.scores()
    for i, one in zip(
        some, expected("tiny", "what", 0, given=[many[i] for i in some]), strict=True
    ):
        assert np.allclose(found[i], one, rtol=0, atol=1e-4)


def test_a_client_that_leaves_while_scoring_leaves_nothing() -> None:
    engine = new_engine(trie_at_once=2)
    answer = rank(engine, CANDIDATES, "what", 0)
    step(engine, 3)
    answer.handle.cancel()
    drive(engine)
    assert answer.names == ["Started"] and engine.blocks.num_used == 0


def test_a_deadline_while_scoring_is_an_error() -> None:
    engine = new_engine(trie_at_once=2)
    answer = rank(engine, CANDIDATES, "what", 0)
    step(engine, 3)
    engine.scheduler.running[0].deadline = 0.0
    drive(engine)
    assert isinstance(answer.events[-1], DeadlineExceeded)


def test_candidates_that_could_never_fit_are_refused_at_once() -> None:
    engine = new_engine(num_blocks=20)
    with pytest.raises(TooLarge):
        score(engine, prompt("what", 0), [[5] * 90])
    assert engine.num_requests == 0
