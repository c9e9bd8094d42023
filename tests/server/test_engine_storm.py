"""Requests of all kinds come, leave and fail in a small engine: who stays answers as alone."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from block_memory import BlockMemory
from fakes import Answer, FakeRunner, ask, drive, make_engine, make_prompt, score, step, text_ids
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.request import Scored
from flamingo_server.engine.scheduler import Plan
from flamingo_server.errors import EngineFailure

CANDIDATES = [text_ids(text) for text in ("olleh", "olle", "other", "x", "olleh")]
KINDS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("hello", (), {}),
    ("hello you", ("x",), {"n": 2, "temperature": 4.0, "seed": 1}),
    ("hello you", ("x", "y"), {"num_beams": 3, "n": 2}),
    ("hello you there", ("x", "y"), {"num_beams": 2, "stop": ("oy",)}),
    ("hello", ("y", "x"), {"temperature": 5.0, "seed": 2, "logprobs": 1}),
    ("hello you", ("x",), {"prompt_logprobs": 1}),
    ("hello", ("x",), {"candidates": True}),
]


class RemembersBlocks(FakeRunner):
    """Logits of the fake model, after a check that all that is read is what should be there."""

    engine: Engine

    def __init__(self, fails: random.Random | None, is_deterministic: bool) -> None:
        super().__init__(not_finite="poison", bad_media="bad")
        self.fails = fails
        self.memory = BlockMemory(4, is_deterministic)

    def step(self, plan: Plan) -> Tensor:
        if self.fails and self.fails.random() < 0.02:
            self.memory.spoil(plan)
            raise RuntimeError("out of memory")
        self.memory.fill_slots(self.engine.media)
        self.memory.run(plan)
        return super().step(plan)


def new_engine(fails: random.Random | None = None, **limits: Any) -> Engine:
    runner = RemembersBlocks(fails, limits.get("is_deterministic", False))
    runner.engine = make_engine(runner, **limits)
    return runner.engine


def send(engine: Engine, number: int, **outside: Any) -> Answer:
    text, digests, rules = KINDS[number]
    if "candidates" in rules:
        return score(engine, make_prompt(text, *digests), CANDIDATES, **outside)
    return ask(engine, text, *digests, max_tokens=18, **rules, **outside)


def outcome(answer: Answer) -> list[Any]:
    scores = [e for e in answer.events if isinstance(e, Scored)]
    texts = [(answer.text(i), answer.token_ids(i), answer.logprobs(i)) for i in range(3)]
    return [texts, sorted(answer.reasons), scores]


@cache
def expected(number: int) -> list[Any]:
    engine = new_engine()
    answer = send(engine, number)
    drive(engine)
    assert answer.names[-1] == "Ended"
    return outcome(answer)


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_whoever_stays_answers_as_alone(seed: int, is_deterministic: bool) -> None:
    dice, right = random.Random(seed), [expected(number) for number in range(len(KINDS))]
    engine = new_engine(
        random.Random(seed),
        max_running=7,
        max_step_tokens=9,
        num_blocks=46,
        num_media_slots=3,
        trie_at_once=4,
        is_deterministic=is_deterministic,
    )
    stayed, left, bad = list[tuple[int, Answer]](), list[Answer](), list[Answer]()
    for _ in range(40):
        number = dice.randrange(len(KINDS))
        stayed.append((number, send(engine, number, priority=dice.choice([0, 0, 1, 2]))))
        if dice.random() < 0.2:
            left.append(send(engine, number))
        if dice.random() < 0.1:
            bad.append(ask(engine, "poison", num_beams=dice.randint(1, 2)))
            bad.append(ask(engine, "hello you", "x", "bad"))
        step(engine, dice.randint(0, 6))
        if left and dice.random() < 0.5:
            dice.choice(left).handle.cancel()
        engine.scheduler.check_integrity()
    for answer in left:
        answer.handle.cancel()
    drive(engine)
    failed = [a for _, a in stayed if isinstance(a.events[-1], EngineFailure)]
    assert all(isinstance(answer.events[-1], EngineFailure) for answer in bad)
    assert engine.scheduler.num_preemptions > 0 and len(failed) < 30
    for number, answer in stayed:
        assert answer in failed or outcome(answer) == right[number]
    assert not engine.blocks.references and not engine.media.pins


def test_a_failed_step_fails_only_what_was_in_it_and_nobody_finds_its_blocks() -> None:
    engine = new_engine()
    first = send(engine, 1)
    step(engine, 2)
    runner = engine.runner
    assert isinstance(runner, RemembersBlocks)
    runner.fails = random.Random()
    runner.fails.random = lambda: 0.0  # type: ignore[method-assign]
    step(engine)
    runner.fails = None
    again = send(engine, 1)
    drive(engine)
    assert isinstance(first.events[-1], EngineFailure) and outcome(again) == expected(1)


def test_a_picture_that_fails_in_the_middle_of_a_batch_harms_nobody() -> None:
    engine = new_engine()
    running = send(engine, 2)
    step(engine, 3)
    answers = [ask(engine, "hello", "x", "bad"), ask(engine, "hello", "z", "bad"), send(engine, 4)]
    drive(engine)
    assert [a.names[-1] for a in answers] == ["EngineFailure", "EngineFailure", "Ended"]
    assert outcome(running) == expected(2) and outcome(answers[2]) == expected(4)


@pytest.mark.parametrize("number", range(len(KINDS)))
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_client_may_leave_at_any_time(number: int, after: int) -> None:
    engine = new_engine(max_step_tokens=6, trie_at_once=2)
    gone, stays = send(engine, number), send(engine, 1)
    step(engine, after)
    gone.handle.cancel()
    step(engine)
    assert all(r is not gone.handle.request for r in engine.scheduler.requests())
    drive(engine)
    assert outcome(stays) == expected(1)
    assert not engine.blocks.references and not engine.media.pins


@pytest.mark.parametrize("number", range(len(KINDS)))
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_deadline_may_pass_at_any_time(number: int, after: int) -> None:
    engine = new_engine(max_step_tokens=6, trie_at_once=2)
    late, stays = send(engine, number), send(engine, 1)
    step(engine, after)
    late.handle.request.deadline = 0.0
    drive(engine)
    is_error = late.names[-1] == "DeadlineExceeded"
    assert is_error or (late.names[-1] == "Ended" and set(late.reasons) <= {"timeout", "stop"})
    assert outcome(stays) == expected(1)
    assert not engine.blocks.references and not engine.media.pins


def test_an_error_while_a_deadline_ends_a_request_ends_it_alone() -> None:
    engine = new_engine()
    late, stays = send(engine, 0), send(engine, 1)
    step(engine, 2)
    request = late.handle.request
    request.deadline = 0.0
    request.task.stop = lambda reason: 1 / 0
    drive(engine)
    assert isinstance(late.events[-1], EngineFailure) and outcome(stays) == expected(1)
