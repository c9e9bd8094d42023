"""Many at once: clients that share a support set, and candidates that share a prompt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.measure import Figure, Side, alternate, ratio
from bench.ours import Ours, parts
from bench.prompts import candidates, prompt
from bench.stage import Stage

NUM_CLIENTS, NUM_SHOTS, NUM_CANDIDATES = 16, 8, 1000
CHECKED = 20  # candidates whose order is compared


def clients(stage: Stage) -> Iterator[Figure]:
    """Seconds per token of all clients together, and of OpenFlamingo with one after the other."""
    num = 16 if stage.is_quick else 32
    sides: dict[str, Side] = {
        "OpenFlamingo one by one": lambda r: [one_by_one(stage, r, num)],
        "float32": lambda r: [together(stage.plain, r, num)],
        "fastest type": lambda r: [together(stage.fast, r, num)],
    }
    times = alternate(sides, min(stage.rounds, 2), stage.watch)
    for who in ("float32", "fastest type"):
        name = f"{NUM_CLIENTS} clients, shared {NUM_SHOTS}-shot support set, {who}, tokens/s"
        how = "per token of all; the set is known, each client's picture is new"
        yield ratio(
            f"{name} ÷ OpenFlamingo's one by one",
            "≥ 10",
            times["OpenFlamingo one by one"],
            times[who],
            how,
        )


def one_by_one(stage: Stage, number: int, num_tokens: int, num_requests: int = 2) -> float:
    """As many as there is time for: each costs the same."""
    base = prompt(4000 + number, NUM_SHOTS)
    asked = [base.showing(1_000_000 * (number + 1) + i) for i in range(num_requests)]
    seconds = sum(stage.peer.generate(one, num_tokens)["seconds"] for one in asked)
    return float(seconds) / (num_requests * num_tokens)


def together(ours: Ours, number: int, num_tokens: int) -> float:
    base = prompt(4000 + number, NUM_SHOTS)
    ours.first_token(base)
    sent = [parts(base.showing(1_000_000 * (number + 1) + i)) for i in range(NUM_CLIENTS)]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        started = time.perf_counter()
        answers = list(pool.map(lambda one: ours.answer(one, num_tokens), sent))
        seconds = time.perf_counter() - started
    return seconds / sum(len(answer) for answer in answers)


def ranking(stage: Stage) -> Iterator[Figure]:
    """All candidates of ours; of OpenFlamingo's loop a part, the rest costs the same."""
    part = 20 if stage.is_quick else 50
    sides: dict[str, Side] = {
        "OpenFlamingo's loop": lambda r: [loop(stage, r, part)],
        "float32": lambda r: [classified(stage.plain, r)],
        "fastest type": lambda r: [classified(stage.fast, r)],
    }
    times = alternate(sides, min(stage.rounds, 2), stage.watch)
    for who in ("float32", "fastest type"):
        name = f"{NUM_CANDIDATES:,} candidates, {who} ÷ OpenFlamingo's loop"
        how = f"a prompt of {NUM_SHOTS} shots, new to both; its loop timed on {part}"
        yield ratio(name, "≤ 1/30", times[who], times["OpenFlamingo's loop"], how)


def loop(stage: Stage, number: int, num: int) -> float:
    names = candidates(number, NUM_CANDIDATES)[:num]
    found = stage.peer.rank(prompt(5000 + number, NUM_SHOTS), names)
    return float(found["context_seconds"] + found["seconds"] * NUM_CANDIDATES / num)


def classified(ours: Ours, number: int) -> float:
    names = candidates(number, NUM_CANDIDATES)
    return ours.classify(prompt(5000 + number, NUM_SHOTS), names)[0]


def ranked_by_us(ours: Ours, num_shots: int) -> list[str]:
    names = candidates(0, CHECKED)
    return in_order(ours.classify(prompt(6000, num_shots), names)[1], set(names))


def ranked_by_peer(stage: Stage, num_shots: int) -> list[str]:
    names = candidates(0, CHECKED)
    scores = stage.peer.rank(prompt(6000, num_shots), names)["scores"]
    return [name for _, name in sorted(zip(scores, names, strict=True), reverse=True)]


def in_order(answer: dict[str, Any], names: set[str]) -> list[str]:
    """The candidates of the answer, which are sorted, whatever its fields are called."""
    entries = next(value for value in answer.values() if isinstance(value, list))
    return [v for entry in entries for v in entry.values() if isinstance(v, str) and v in names]
