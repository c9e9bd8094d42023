"""In deterministic mode the very bits of every number depend on the request alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes import Answer, drive, step
from tiny_engines import KINDS, ask, new_engine, rank

OTHERS = [k for k in KINDS if k != "tiny"]
MODELS = pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("tiny", torch.float32),
        ("tiny", torch.bfloat16),
        *(pytest.param(k, torch.float32, marks=pytest.mark.slow) for k in OTHERS),
        *(pytest.param(k, torch.bfloat16, marks=pytest.mark.slow) for k in OTHERS),
    ],
)
ASKED: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("what", (0, 1), {"prompt_logprobs": 2}),
    ("what", (0, 1), {"end": "ever this may be for?", "logprobs": 5}),
    ("is it", (2,), {"n": 2, "temperature": 1.0, "seed": 4}),
    ("a longer question than the others", (), {"num_beams": 3}),
]
CANDIDATES = [[5, 6, 7], [5, 6], [9], [5, 8, 9, 10, 11, 12]]


def everything(answer: Answer) -> list[Any]:
    """All numbers but times; each choice by itself."""
    kept = [e for e in answer.events if type(e).__name__ not in ("Ended", "Started")]
    kept.sort(key=lambda event: getattr(event, "index", 0))
    started = [getattr(e, "prompt_logprobs", None) for e in answer.events]
    return [kept, [found for found in started if found]]


def engine(kind: str, dtype: torch.dtype, **limits: Any) -> Any:
    return new_engine(kind, dtype, is_deterministic=True, trie_at_once=6, **limits)


def ask_number(engine: Any, number: int) -> Answer:
    if number == len(ASKED):
        return rank(engine, CANDIDATES, "which of them?", 0)
    text, seeds, rules = ASKED[number]
    return ask(engine, text, *seeds, **{"min_tokens": 0, **rules})


NUM = len(ASKED) + 1


def alone(kind: str, dtype: torch.dtype) -> list[list[Any]]:
    found = []
    for number in range(NUM):
        mine = engine(kind, dtype)
        answer = ask_number(mine, number)
        drive(mine)
        assert answer.names[-1] == "Ended"
        found.append(everything(answer))
    return found


@MODELS
def test_no_bit_changes_in_a_batch_of_32_nor_warm_nor_interleaved(
    kind: str, dtype: torch.dtype
) -> None:
    expected, crowded = alone(kind, dtype), engine(kind, dtype, max_step_tokens=40)
    for is_warm in (False, True):
        answers = []
        for number in range(10 if is_warm else 32):
            answers.append((number % NUM, ask_number(crowded, number % NUM)))
            if is_warm and number % 4 == 0:
                step(crowded)
        drive(crowded)
        for number, answer in answers:
            assert everything(answer) == expected[number]


@MODELS
def test_no_bit_changes_after_a_displacement(kind: str, dtype: torch.dtype) -> None:
    expected, small = alone(kind, dtype), engine(kind, dtype, max_running=6, num_blocks=80)
    answers = [(number, ask_number(small, number)) for number in range(NUM)]
    for _ in range(9):
        step(small, 3)
        if small.scheduler.running:
            small.scheduler.preempt(small.scheduler.running[-1])
            while small.blocks.idle:
                small.blocks.evict()
    drive(small)
    assert small.scheduler.num_preemptions > 5
    for number, answer in answers:
        assert everything(answer) == expected[number], number
