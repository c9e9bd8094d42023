"""One training step beside OpenFlamingo's own, on the same weights, documents and pictures.

`PYTHONPATH=tests .venv/bin/python tests/bench/train_step.py [--steps N] [--threads N]`, after `make
peers`. Each side is a process of its own, asked in turn. A step is that of OpenFlamingo's
`train_one_epoch`: a batch of pairs, a batch of interleaved documents, clip, AdamW. Time is the
process's CPU time, memory all that it holds at its peak, weights and optimiser included: with
`--quick` shapes, those are nearly all there is. `--precision bf16` is bfloat16 activations over
trained weights in float32 on both sides: `amp_bf16` there; ours keeps what is frozen in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runs" / "peer-network"
PEER = ROOT / ".venv-peers" / "bin" / "python"
SIZE, WORDS = 224, (100, 40_000)


@dataclass(frozen=True)
class Shape:
    """Rows of as many tokens, with as many pictures each."""

    rows: int
    length: int
    pictures: int
    weight: float

    def draw(self, image: int, end_of_chunk: int) -> tuple[Tensor, Tensor]:
        """ids [rows, length], pixels [rows, pictures, 3, H, W]; each picture opens a chunk."""
        random = torch.Generator().manual_seed(self.length)
        ids = torch.randint(*WORDS, (self.rows, self.length), generator=random)
        chunk = self.length // self.pictures
        ids[:, 0 : chunk * self.pictures : chunk] = image
        ids[:, chunk - 1 : chunk * self.pictures : chunk] = end_of_chunk
        shape = (self.rows, self.pictures, 3, SIZE, SIZE)
        return ids, torch.randn(shape, generator=random)


SHAPES = (Shape(8, 32, 1, 0.2), Shape(4, 256, 5, 1.0))
QUICK = (Shape(4, 32, 1, 0.2), Shape(1, 160, 5, 1.0))


def ours(options: argparse.Namespace) -> Callable[[], float]:
    """A step of the loop; gives its loss."""
    from flamingo_model.checkpoints.families import Parts
    from flamingo_model.checkpoints.opening import open_checkpoint
    from flamingo_model.training.base import Base
    from flamingo_model.training.config import parse
    from flamingo_model.training.distributed import ALONE
    from flamingo_model.training.loop import Loop
    from flamingo_model.training.mixture import Stream
    from flamingo_model.training.objective import Batch, MediaGroup
    from flamingo_model.training.optimise import build_optimisers
    from flamingo_model.training.report import Report
    from flamingo_model.training.stages.flamingo import FlamingoStage
    from flamingo_model.training.state import States

    shapes = QUICK if options.quick else SHAPES
    parts = Parts(str(FOLDER / "lm"), str(FOLDER / "vision"), 1)
    opened = open_checkpoint(FOLDER / "checkpoint.pt", "openflamingo", parts)
    base = Base(opened.load(), opened.tokenizer, None)
    image = base.tokenizer.token_to_id("<image>")
    end_of_chunk = base.tokenizer.token_to_id("<|endofchunk|>")
    del opened  # its files are mapped, and would count as memory
    train = {"steps": 1, "gradient_checkpointing": options.recompute, "rate": 1e-4}
    train["precision"] = options.precision
    sets = [
        {"path": f"{s.length}", "weight": s.weight, "batch": s.rows, "length": s.length}
        for s in shapes
    ]
    values = {"model": {"base": ""}, "output": {"folder": ""}, "train": train, "datasets": sets}
    config = parse(values, FOLDER)

    def batch(number: int, shape: Shape) -> Batch:
        ids, pixels = shape.draw(image, end_of_chunk)
        where = torch.ones(pixels.shape[:2]).nonzero()
        group = MediaGroup(pixels.flatten(0, 1).unsqueeze(1), where[:, 0], where[:, 1])
        index = (ids == image).cumsum(1) - 1
        whose = torch.full((len(ids),), number)
        return Batch(ids, index, ids != image, whose, {1: group}, shape.pictures)

    class Fixed(FlamingoStage):
        """Learns the same two batches in every step."""

        def terms(self, step: int) -> Any:
            for number in self.order():
                drawn = batch(number, shapes[number])
                counts = [0.0] * len(shapes)
                counts[number] = float(drawn.learned[:, 1:].sum())
                yield self.term(drawn, counts)

    streams = [Stream(NoRecords(), dataset, 0) for dataset in config.datasets]
    stage = Fixed(base, config, streams, ALONE)
    optimisers = build_optimisers(stage.groups(), config.train)
    loop = Loop(config.train, ALONE, Report(), States(FOLDER))
    return lambda: loop.step(stage, optimisers, 0)["loss"]


class NoRecords:
    """A source nothing is drawn from."""

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Any:
        return iter(())


def openflamingo(options: argparse.Namespace) -> Callable[[], float]:
    """What `train_one_epoch` does with a batch of each kind; embeddings frozen, as ours."""
    from bench.openflamingo_model import build

    shapes, network = QUICK if options.quick else SHAPES, build(FOLDER)
    model, tokenizer = network.model, network.tokenizer
    model.lang_encoder.get_input_embeddings().requires_grad_(False)
    names = ("<image>", "<|endofchunk|>")
    image, end_of_chunk = (tokenizer.convert_tokens_to_ids(name) for name in names)
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decays = [p for n, p in learned if is_decayed(n)]
    rest = [p for n, p in learned if not is_decayed(n)]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-4)
    half = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")

    def step() -> float:
        total = 0.0
        for shape in shapes:
            ids, pixels = shape.draw(image, end_of_chunk)
            labels = ids.masked_fill(ids == image, -100)
            with half:
                found = model(
                    vision_x=pixels.unsqueeze(2),
                    lang_x=ids,
                    attention_mask=torch.ones_like(ids),
                    labels=labels,
                )
            loss = found[0] * shape.weight
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        model.train()  # from the second step on: the first loss, without dropout, must equal ours
        return total

    return step


def is_decayed(name: str) -> bool:
    """Its `get_grouped_params`."""
    undecayed = ("ff_gate", "attn_gate", "norm", "bias")
    return "gated_cross_attn_layer" in name and not any(part in name for part in undecayed)


SIDES = {"ours": ours, "OpenFlamingo": openflamingo}


def work(options: argparse.Namespace) -> None:
    """A side: a step for each line that comes in, a JSON line out."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    torch.set_num_threads(options.threads)
    step = SIDES[options.side](options)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answers.write(json.dumps(asdict(Taken(wall, cpu, peak(), loss))) + "\n")


@dataclass(frozen=True)
class Taken:
    seconds: float
    cpu_seconds: float
    gigabytes: float
    loss: float


def peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e9


def start(side: str, arguments: list[str]) -> subprocess.Popen[str]:
    python = str(PEER) if side == "OpenFlamingo" else sys.executable
    stubs = [ROOT / "tests" / "bench" / "peer_stubs"] if side == "OpenFlamingo" else []
    paths = [*stubs, ROOT / "tests", *([ROOT / "model"] if side == "ours" else [])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return subprocess.Popen(
        [python, __file__, "--side", side, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **offline, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )


def ask(process: subprocess.Popen[str]) -> Taken:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    return Taken(**json.loads(process.stdout.readline()))


def measure(options: argparse.Namespace, arguments: list[str]) -> dict[str, list[Taken]]:
    """The peer begins: it makes the network that ours reads. The first step of each, which makes
    the optimiser's memory, is neither timed nor weighed."""
    processes, taken = dict[str, subprocess.Popen[str]](), dict[str, list[Taken]]()
    try:
        for side in ("OpenFlamingo", "ours"):
            processes[side] = start(side, arguments)
            taken[side] = []
            print(f"{side}: the first loss is {ask(processes[side]).loss:.5f}", flush=True)
        for _ in range(options.steps):
            for side, process in processes.items():
                taken[side].append(ask(process))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return taken


def report(taken: dict[str, list[Taken]]) -> None:
    for side, steps in taken.items():
        wall, cpu = min(s.seconds for s in steps), min(s.cpu_seconds for s in steps)
        memory = max(s.gigabytes for s in steps)
        losses = ", ".join(f"{s.loss:.4f}" for s in steps)
        print(f"{side}: {wall:.2f} s, {cpu:.2f} s of CPU, {memory:.3f} GB; losses {losses}")
    one, other = taken["ours"], taken["OpenFlamingo"]
    times = min(s.cpu_seconds for s in one) / min(s.cpu_seconds for s in other)
    memory = max(s.gigabytes for s in one) / max(s.gigabytes for s in other)
    print(f"time of a step ÷ OpenFlamingo's: {times:.3f} (must be ≤ 1.0)")
    print(f"peak memory ÷ OpenFlamingo's: {memory:.3f} (must be ≤ 0.8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES, default=None, help="be one side (used inside)")
    parser.add_argument("--steps", type=int, default=3, help="of each side, after a first one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="smaller batches")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--recompute", action="store_true", help="our gradient checkpointing")
    options = parser.parse_args()
    if options.side:
        work(options)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    report(measure(options, sys.argv[1:]))


if __name__ == "__main__":
    main()
