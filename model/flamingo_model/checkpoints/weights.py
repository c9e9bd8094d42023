"""Weights on disk, and the one rule for all of them: nothing missing, nothing left over."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

SHOWN = 8  # names of each sort in a message


class CheckpointError(Exception):
    """The folder is not a whole, sound checkpoint; the message names what is wrong."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A `.safetensors` file, or one of torch's holding nothing but tensors."""
    if path.suffix != ".safetensors":
        return as_tensors(read_torch(path), path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_torch(path: Path) -> object:
    """What torch saved, if it is nothing but tensors, numbers, texts and their containers."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def as_tensors(saved: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(f"{path}: not a flat state dict")
    return dict(saved)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """A model as Hugging Face saves it: one file, or shards listed in an index."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            shards = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
            return {k: v for shard in shards for k, v in read_tensors(folder / shard).items()}
    raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


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
