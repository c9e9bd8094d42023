"""A network without numbers: the same tensors, nothing drawn, nothing heavy imported."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from flamingo_model.checkpoints.hollow import hollow
from flamingo_model.flamingo import Flamingo
from tiny import tiny_config

WITHOUT_A_COMPILER = """
import sys
from flamingo_model.checkpoints.checkpoint import empty_model
from flamingo_model.checkpoints.native import EMBEDDED, open_native
open_native(EMBEDDED).empty()
print(*({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


def test_it_has_the_tensors_of_one_that_is_drawn() -> None:
    with hollow():
        found = Flamingo(tiny_config()).state_dict()
    drawn = Flamingo(tiny_config()).state_dict()
    assert all(tensor.is_meta for tensor in found.values())
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in drawn.items()
    }


def test_making_one_does_not_import_torchs_compiler() -> None:
    command = [sys.executable, "-c", WITHOUT_A_COMPILER]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


@pytest.mark.parametrize("fill", [nn.init.normal_, nn.init.ones_, lambda x: x.uniform_(1, 2)])
def test_what_is_computed_on_a_real_device_in_there_keeps_its_numbers(fill) -> None:
    with hollow():
        real = torch.zeros(3, device="cpu")
        assert fill(real) is real
        empty = torch.empty(3)
        assert fill(empty) is empty
        assert fill(tensor=empty) is empty if fill is nn.init.normal_ else True
    assert real.all() and empty.is_meta


def test_outside_of_it_numbers_are_drawn_as_ever() -> None:
    with hollow():
        pass
    assert torch.randn(3).any() and nn.Linear(3, 3).weight.any()
