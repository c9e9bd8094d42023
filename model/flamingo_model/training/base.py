"""The model that a run begins with: a checkpoint's weights, or parts of it fresh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from ..checkpoints.families import Parts
from ..checkpoints.lazy import all_lazy
from ..checkpoints.native import load_config, load_tokenizer
from ..checkpoints.opening import open_checkpoint
from ..checkpoints.weights import Weights
from ..flamingo import Flamingo
from .config import PARTS_OF_MODEL, ModelConfig


@dataclass(frozen=True)
class Base:
    """`stored` are the weights in their files, None where nothing was read."""

    model: Flamingo
    tokenizer: Tokenizer
    stored: Weights | None


def load_base(config: ModelConfig, seed: int) -> Base:
    """In float32, on the CPU, nothing trained yet. Raises CheckpointError."""
    if set(config.fresh) == set(PARTS_OF_MODEL):
        folder = Path(config.base)
        shape = load_config(folder / "config.json")
        tokenizer = load_tokenizer(folder / "tokenizer.json", shape)
        return Base(begin(Flamingo(shape), PARTS_OF_MODEL, seed), tokenizer, None)
    opened = open_checkpoint(config.base, config.family, Parts(**config.parts()))
    model = begin(opened.load("cpu", torch.float32), config.fresh, seed)
    return Base(model, opened.tokenizer, opened.weights)


def begin(model: Flamingo, parts: tuple[str, ...], seed: int) -> Flamingo:
    """Gives parts new random weights; gates begin at 0."""
    if parts:
        torch.manual_seed(seed)
        new = Flamingo(model.config)
        narrow(new.decoder)
        for part in parts:
            model.get_submodule(part).load_state_dict(new.get_submodule(part).state_dict())
    return model.eval().requires_grad_(False)


def narrow(decoder: nn.Module, std: float = 0.02) -> None:
    """GPT-2's start (Radford et al. 2019): torch's own embeddings make the first losses huge."""
    for module in decoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def stored_tensors(base: Base) -> dict[str, torch.Tensor]:
    """What is in the files, read when wanted: never rounded on the way."""
    return all_lazy(base.stored) if base.stored is not None else {}
