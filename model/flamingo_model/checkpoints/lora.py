"""Low-rank updates, as peft names them, baked into the weights that they stand beside.

`<module>.lora_A[.<adapter>].weight` [r, in] and `lora_B` [out, r]: the module computes with
W + (alpha / r) · B A, and so does the merged weight, to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .weights import complain

Weights = dict[str, Tensor]
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>[AB])(\.(?P<adapter>[^.]+))?\.weight")


@dataclass(frozen=True)
class Lora:
    """The factors by the name of the weight they change."""

    down: Weights  # A, [r, in]
    up: Weights  # B, [out, r]

    def check(self, where: str) -> None:
        """Raises CheckpointError for a factor without its partner, or of another rank."""
        complain(
            where,
            {
                "lora_A without lora_B": self.down.keys() - self.up.keys(),
                "lora_B without lora_A": self.up.keys() - self.down.keys(),
                "lora_A and lora_B of different ranks": {n for n in self.both() if self.is_odd(n)},
            },
            "low-rank updates",
        )

    def is_odd(self, name: str) -> bool:
        down, up = self.down[name], self.up[name]
        return not (down.dim() == up.dim() == 2 and 0 < len(down) == up.shape[1])

    def both(self) -> set[str]:
        return self.down.keys() & self.up.keys()

    def deltas(self, alpha: float) -> Iterator[tuple[str, Tensor]]:
        """(alpha / r) · B A, one at a time: all of them would fill the memory."""
        for name in sorted(self.both()):
            down, up = self.down[name].float(), self.up[name].float()
            yield name, (up @ down) * (alpha / len(down))


def split_lora(state: Mapping[str, Tensor]) -> tuple[Weights, Weights]:
    """Plain tensors, and the factors."""
    factors = {name: tensor for name, tensor in state.items() if FACTOR.fullmatch(name)}
    return {k: v for k, v in state.items() if k not in factors}, factors


def paired(factors: Mapping[str, Tensor]) -> Lora:
    lora = Lora({}, {})
    for name, tensor in factors.items():
        match = FACTOR.fullmatch(name)
        assert match, name
        side = lora.down if match["kind"] == "A" else lora.up
        side[f"{match['module']}.weight"] = tensor
    return lora


def merge_lora(
    weights: Weights,
    factors: Mapping[str, Tensor],
    alpha: float,
    place: Callable[[str, Tensor], Weights],
    where: str,
) -> None:
    """Changes `weights`. `place` gives the pieces of a delta under our names, none if unknown."""
    lora = paired(factors)
    lora.check(where)
    leftover, misshapen = set[str](), set[str]()
    for name, delta in lora.deltas(alpha):
        pieces = place(name, delta)
        if not pieces or not pieces.keys() <= weights.keys():
            leftover.add(name)
        elif any(weights[ours].shape != piece.shape for ours, piece in pieces.items()):
            misshapen.add(f"{name} {list(delta.shape)}")
        else:
            for ours, piece in pieces.items():
                weights[ours] = (weights[ours].float() + piece).to(weights[ours].dtype)
    problems = {"leftover low-rank updates": leftover, "wrongly shaped": misshapen}
    complain(where, problems, "the weights that it changes")
