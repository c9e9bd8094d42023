"""Adapters of random numbers for tests: whatever training might have changed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flamingo_model.adapters import Adapter, AdapterCard, base_digest, save_adapter
from flamingo_model.flamingo import Flamingo

LINEARS = ("q", "k", "v", "out", "gate", "up", "down")
FLAMINGO = ("resampler.", "cross_attention.")


def replacements(model: Flamingo, seed: int, *prefixes: str) -> dict[str, Tensor]:
    """New tensors for all parts that begin so, far enough from the old ones to be seen."""
    dice = torch.Generator().manual_seed(seed)
    own = model.state_dict()
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=dice)
        for name, tensor in own.items()
        if name.startswith(prefixes)
    }


def low_rank(
    model: Flamingo, seed: int, rank: int = 2, linears: tuple[str, ...] = LINEARS
) -> dict[str, Tensor]:
    """Of these linear layers of every decoder layer that has them."""
    dice, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if name.startswith("decoder.layers.") and module.rpartition(".")[2] in linears:
            if name.endswith(".weight"):
                out, source = tensor.shape
                found[f"{module}.lora_A"] = torch.randn(rank, source, generator=dice) * 0.3
                found[f"{module}.lora_B"] = torch.randn(out, rank, generator=dice) * 0.3
    return found


def card(model: Flamingo, **fields: object) -> AdapterCard:
    values = {"name": "pets", "lora_alpha": 4.0, **fields}
    return AdapterCard(base_digest(model), **values)  # type: ignore[arg-type]


def adapter(model: Flamingo, tensors: dict[str, Tensor]) -> Adapter:
    return Adapter(card(model), tensors)


def write(path: Path, model: Flamingo, tensors: dict[str, Tensor]) -> Path:
    save_adapter(path, tensors, card(model))
    return path
