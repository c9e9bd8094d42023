"""Who takes part in the benchmarks, and how long they may take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.measure import Watch
from bench.ours import Ours, start_ours
from bench.peer import ROOT, Peer, start_peer
from bench.prompts import prompt
from flamingo_client import FlamingoError

FOLDER = ROOT / "runs" / "peer-network"
IN_HALVES = FOLDER / "lm-float16"


@dataclass(frozen=True)
class Stage:
    """OpenFlamingo and three servers of ours, with the same weights but for what is rounded."""

    peer: Peer
    plain: Ours  # float32
    fast: Ours  # the fastest type
    halves: Ours  # float32, of a language model that was published in float16
    fastest: dict[str, str]  # the settings of `fast`
    threads: int
    is_quick: bool
    watch: Watch

    @property
    def rounds(self) -> int:
        return 1 if self.is_quick else 3


@contextmanager
def set_up(threads: int, fastest: dict[str, str], is_quick: bool, watch: Watch) -> Iterator[Stage]:
    """Raises PeerError where `make peers` has not been run."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        watch("OpenFlamingo makes its network")
        peer = stack.enter_context(start_peer(FOLDER / "peer.log"))
        peer.load(FOLDER, threads)
        watch("our servers load it")
        served = [
            stack.enter_context(start_ours(FOLDER / "checkpoint.pt", **settings(threads) | chosen))
            for chosen in ({"dtype": "float32"}, fastest, {"lm": in_halves()})
        ]
        stage = Stage(peer, *served, fastest, threads, is_quick, watch)
        warm_up(stage)
        yield stage


def settings(threads: int) -> dict[str, object]:
    return {
        "family": "openflamingo",
        "lm": FOLDER / "lm",
        "vision": FOLDER / "vision",
        "cross_attention_interval": 1,
        "device": "cpu",
        "threads": threads,
    }


def in_halves() -> Path:
    """The folder of the language model with numbers that float16 holds, as OPT's are published."""
    if not (IN_HALVES / "pytorch_model.bin").is_file():
        shutil.copytree(FOLDER / "lm", IN_HALVES, ignore=lambda *_: ["pytorch_model.bin"])
        weights = torch.load(FOLDER / "lm" / "pytorch_model.bin", weights_only=True)
        halves = {name: tensor.half() for name, tensor in weights.items()}
        torch.save(halves, IN_HALVES / "pytorch_model.bin")
    return IN_HALVES


def warm_up(stage: Stage) -> None:
    """The first call of a process pays for memory and compiled kernels."""
    stage.watch("everyone warms up")
    first = prompt(1, 1)
    stage.peer.generate(first, 2)
    for ours in (stage.plain, stage.fast, stage.halves):
        with suppress(FlamingoError):  # told where it is used
            ours.whole(first, 2)
