"""Runs as real processes: killed at once, and two that work together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flamingo_model.training.loop import trained_weights
from training.child import settings, sources
from training.made import base, train

CHILD = Path(__file__).with_name("child.py")
PATHS = os.pathsep.join(path for path in sys.path if path)


def start(*command: str, folder: Path, steps: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command, str(CHILD), str(folder), str(steps)],
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def alone(folder: Path, steps: int) -> dict[str, Tensor]:
    return trained_weights(train(settings(folder, steps), sources(), start=base(gate=0.3)).module)


def test_a_run_killed_without_warning_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL as soon as a state is there, wherever the process is then."""
    steps, killed = 12, tmp_path / "killed"
    process = start(folder=killed, steps=steps)
    while not [*killed.glob("run/state-*.pt")]:
        assert process.poll() is None, "the child ended before its first state"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not (killed / "weights.pt").exists()
    resumed, whole = alone(killed, steps), alone(tmp_path / "whole", steps)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """In shards (FSDP2 over gloo); what one of two saved, one alone goes on with."""
    process = start(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        folder=tmp_path,
        steps=3,
    )
    expected = alone(tmp_path / "alone", 3)
    assert process.wait(300) == 0
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert together.keys() == expected.keys()
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=2e-6, msg=name)
    longer = alone(tmp_path, 5)
    for name, tensor in alone(tmp_path / "alone", 5).items():
        torch.testing.assert_close(longer[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
