"""Correctness beside speed: the same network gives the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

from bench.crowd import ranked_by_peer, ranked_by_us
from bench.ours import parts, problem_of
from bench.peer import PeerError
from bench.prompts import prompt
from bench.stage import Stage
from flamingo_client import FlamingoError

NUM_TOKENS = 16


def compared(stage: Stage) -> Iterator[tuple[str, str]]:
    """What was compared, and "equal" or how it differs."""
    for num in (0, 4) if stage.is_quick else (0, 4, 16):
        yield f"prompt ids, {num} shots", told(lambda num=num: prompt_ids(stage, num))
        for beams in (1, 3):
            kind = "greedy" if beams == 1 else "3 beams"
            check = told(lambda num=num, beams=beams: tokens(stage, num, beams))
            yield f"{NUM_TOKENS} tokens, {kind}, {num} shots", check
    yield "order of 20 candidates, 2 shots", told(lambda: order(stage))


def told(check: Callable[[], str]) -> str:
    try:
        return check()
    except (FlamingoError, PeerError) as error:
        return problem_of(error)


def prompt_ids(stage: Stage, num_shots: int) -> str:
    asked = prompt(3000 + num_shots, num_shots)
    stage.watch(f"prompt ids, {num_shots} shots")
    return difference(stage.peer.generate(asked, 1)["prompt_ids"], stage.plain.prompt_ids(asked))


def tokens(stage: Stage, num_shots: int, num_beams: int) -> str:
    asked = prompt(3000 + num_shots, num_shots)
    stage.watch(f"answers with {num_beams} beams, {num_shots} shots")
    ours = stage.plain.answer(parts(asked), NUM_TOKENS, num_beams if num_beams > 1 else None)
    return difference(stage.peer.generate(asked, NUM_TOKENS, num_beams)["token_ids"], ours)


def order(stage: Stage) -> str:
    stage.watch("the order of candidates")
    ours = ranked_by_us(stage.plain, 2)
    return difference(ranked_by_peer(stage, 2), ours)


def difference(theirs: list[Any], ours: list[Any]) -> str:
    pairs = enumerate(zip_longest(theirs, ours))
    first = next((number for number, (a, b) in pairs if a != b), None)
    return "equal" if first is None else f"differ from number {first} of {len(theirs)} on"
