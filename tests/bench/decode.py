"""Time per token once the first is there: greedy, with beams, and against the memory's speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.measure import Figure, Side, Times, alternate, ratio
from bench.ours import Ours, steps
from bench.prompts import Prompt, prompt
from bench.stage import FOLDER, Stage

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
READ_EVERY_STEP = ("model.decoder.layers.", "final_layer_norm", "embed_tokens")
NUM_SAMPLES = 3  # of ours, a round
READ_BYTES = 2**29


@dataclass(frozen=True)
class PerToken:
    times: dict[str, Times]
    fast_bytes: int | None  # of a weight; None: of several sizes

    def figures(self) -> Iterator[Figure]:
        yield self.against_peer("float32", "ours", "≤ 1/4")
        yield self.against_peer("fastest type", "fastest", "≤ 1/8")
        yield self.against_peer("float32, the LM's layers float16 as published", "halves", "")
        yield self.shots()
        yield self.of_bandwidth("float32", self.times["ours 16"], 4)
        if self.fast_bytes is not None:
            yield self.of_bandwidth("fastest type", self.times["fastest 16"], self.fast_bytes)
        yield self.beams()
        yield from self.of_the_peer()

    def against_peer(self, dtype: str, who: str, must: str) -> Figure:
        name = f"decode per token at 16 shots, batch 1, {dtype} ÷ OpenFlamingo's"
        return ratio(name, must, self.times[f"{who} 16"], self.times["OpenFlamingo 16"])

    def shots(self) -> Figure:
        name = "decode per token, 16 shots ÷ 0 shots"
        return ratio(name, "≤ 1.1", self.times["ours 16"], self.times["ours 0"])

    def of_bandwidth(self, dtype: str, times: Times, num_bytes: int) -> Figure:
        name = f"decode, {dtype}, bytes of weights read per second ÷ measured read bandwidth"
        if times.problem:
            return Figure(name, "≥ 0.7", None, times.problem)
        read = weights_read(FOLDER) * num_bytes
        bandwidth = READ_BYTES / self.times["reading"].least
        how = f"{read / 1e6:,.0f} MB in {times} against {bandwidth / 1e9:.1f} GB/s"
        return Figure(name, "≥ 0.7", read / times.least / bandwidth, how)

    def beams(self) -> Figure:
        name = "3 beams, per step ÷ greedy per step, at 16 shots"
        return ratio(name, "≤ 1.3", self.times["ours 3 beams"], self.times["ours greedy"])

    def of_the_peer(self) -> Iterator[Figure]:
        """What the reference does itself, for comparison."""
        peer = self.times["OpenFlamingo 16"]
        yield ratio("OpenFlamingo: 16 shots ÷ 0 shots", "", peer, self.times["OpenFlamingo 0"])
        if beams := self.times.get("OpenFlamingo 3 beams"):
            yield ratio("OpenFlamingo: 3 beams ÷ greedy", "", beams, peer)


def measure(stage: Stage) -> PerToken:
    num = 17 if stage.is_quick else 33
    none, many = prompt(2000, 0), prompt(2016, 16)
    sides: dict[str, Side] = {
        "OpenFlamingo 0": peer_side(stage, none, num),
        "OpenFlamingo 16": peer_side(stage, many, num),
        "ours 0": our_side(stage.plain, none, num),
        "ours 16": our_side(stage.plain, many, num),
        "fastest 16": our_side(stage.fast, many, num),
        "halves 16": our_side(stage.halves, many, num),
        "ours greedy": lambda _: [stage.plain.step(many, num) for _ in range(NUM_SAMPLES)],
        "ours 3 beams": lambda _: [stage.plain.step(many, num, 3) for _ in range(NUM_SAMPLES)],
    }
    sides["reading"] = lambda _: read_times(stage.threads)
    times = alternate(sides, stage.rounds, stage.watch)
    if not stage.is_quick:  # it encodes every picture three times
        beams = {"OpenFlamingo 3 beams": peer_side(stage, many, num, num_beams=3)}
        times |= alternate(beams, 1, stage.watch)
    size = None if "quantize" in stage.fastest else BYTES.get(stage.fastest.get("dtype", ""))
    return PerToken(times, size)


def peer_side(stage: Stage, asked: Prompt, num_tokens: int, num_beams: int = 1) -> Side:
    def seconds(num: int) -> float:
        found: float = stage.peer.generate(asked, num, num_beams)["seconds"]
        return found

    return lambda _: [steps(seconds, num_tokens)]


def our_side(ours: Ours, asked: Prompt, num_tokens: int) -> Side:
    return lambda _: [ours.per_token(asked, num_tokens) for _ in range(NUM_SAMPLES)]


def weights_read(folder: Path) -> int:
    """Weights a step must read at batch 1: not those of pictures, whose keys are kept, and of the
    embedding the head's use of it."""
    lm = torch.load(folder / "lm" / "pytorch_model.bin", mmap=True, weights_only=True)
    trained = torch.load(folder / "checkpoint.pt", mmap=True, weights_only=True)
    of_lm = [x for name, x in lm.items() if any(part in name for part in READ_EVERY_STEP)]
    of_cross_attention = [
        x for name, x in trained.items() if "gated_cross_attn" in name and "to_kv" not in name
    ]
    return sum(x.numel() for x in (*of_lm, *of_cross_attention))


def read_times(threads: int) -> list[float]:
    """Seconds to read READ_BYTES, in several ways and several times; the least is the limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    numbers, vector = torch.ones(READ_BYTES // 4), torch.ones(2**13)
    matrix = numbers.view(-1, 2**13)
    ways: list[Callable[[], torch.Tensor]] = [
        numbers.sum,
        lambda: torch.dot(numbers, numbers),
        lambda: matrix @ vector,
    ]
    taken = [seconds(way) for _ in range(5) for way in ways]
    torch.set_num_threads(before)
    return taken


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
