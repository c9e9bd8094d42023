"""Runs as real processes: killed at once, and two that work together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from flamingo_model.training.report import read_log
from training.child import learn

CHILD = Path(__file__).with_name("child.py")
STAGES = ("flamingo", "contrastive", "language")
Process: TypeAlias = "subprocess.Popen[bytes]"
PATHS = os.pathsep.join(path for path in sys.path if path)


def start(*command: str, folder: Path, steps: int, stages: Sequence[str]) -> Process:
    return subprocess.Popen(
        [sys.executable, *command, str(CHILD), str(folder), str(steps), *stages],
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_run_killed_without_warning_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL as soon as a state is there, wherever the process is then."""
    steps, killed = 12, tmp_path / "killed"
    process = start(folder=killed, steps=steps, stages=["flamingo"])
    while not [*killed.glob("flamingo/run/state-*.pt")]:
        assert process.poll() is None, "the child ended before its first state"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not (killed / "flamingo" / "weights.pt").exists()
    resumed, whole = (learn(folder, steps, "flamingo") for folder in (killed, tmp_path / "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """In shards (FSDP2 over gloo), with shares unlike each other, some of them empty; and one
    process alone goes on with what two have saved."""
    process = start(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        folder=tmp_path,
        steps=3,
        stages=STAGES,
    )
    expected = {stage: learn(tmp_path / "alone", 3, stage) for stage in STAGES}
    assert process.wait(600) == 0
    for stage in STAGES:
        together = torch.load(tmp_path / stage / "weights.pt", weights_only=True)
        assert_near(together, expected[stage])
        curves = [tmp_path / place / stage / "run" / "log.jsonl" for place in ("", "alone")]
        for one, other in zip(*map(read_log, curves), strict=True):
            del one["seconds"], other["seconds"]
            assert one == pytest.approx(other, rel=1e-4), stage
    longer, whole = (learn(tmp_path / place, 5, "flamingo") for place in ("", "alone"))
    assert_near(longer, whole)


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """A hundredth of one step of Adam, which takes a whole one even for the least gradient."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        apart = (tensor - other[name]).abs()
        assert apart.max() < 1e-4 and apart.mean() < 1e-5, name
