"""The one rule for all weights: nothing missing, nothing left over, nothing of another shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

SHOWN = 8  # names of each sort in a message
MANY = 1000  # layers, which are soon built


class CheckpointError(Exception):
    """The folder is not a whole, sound checkpoint; the message names what is wrong."""


class Weights(Protocol):
    """Tensors by name, read when asked for; `layout` has them all without their data ("meta")."""

    @property
    def layout(self) -> Mapping[str, Tensor]: ...

    def __getitem__(self, name: str, /) -> Tensor: ...


def check_depth(num_layers: int, num_tensors: int, where: str) -> None:
    """Raises CheckpointError for more layers than there are tensors: building them may not end."""
    if num_layers > max(num_tensors, MANY):
        raise CheckpointError(f"{where}: fewer tensors than the {num_layers} layers it claims")


def check(weights: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """Raises CheckpointError unless the weights are exactly those of the model."""
    complain(where, mismatches(weights, model.state_dict()))


def mismatches(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, set[str]]:
    return {
        "missing": expected.keys() - weights.keys(),
        "leftover": weights.keys() - expected.keys(),
        "wrongly shaped": {
            f"{k} {list(weights[k].shape)} for {list(expected[k].shape)}"
            for k in expected.keys() & weights.keys()
            if weights[k].shape != expected[k].shape
        },
    }


def complain(where: str, problems: Mapping[str, set[str]], what: str = "its config.json") -> None:
    """Raises CheckpointError if there are any, naming some of each sort."""
    if any(problems.values()):
        said = "; ".join(
            f"{sort}: {sorted(keys)[:SHOWN]}" for sort, keys in problems.items() if keys
        )
        raise CheckpointError(f"{where} does not fit {what}. {said}")
