"""Weights on disk, and the one rule for all of them: nothing missing, nothing left over."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

SHOWN = 8  # names of each sort in a message
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class CheckpointError(Exception):
    """The folder is not a whole, sound checkpoint; the message names what is wrong."""


class Weights(Protocol):
    """Tensors by name, read when asked for; `layout` has them all without their data ("meta")."""

    @property
    def layout(self) -> Mapping[str, Tensor]: ...

    def __getitem__(self, name: str, /) -> Tensor: ...


class TensorFiles(Mapping[str, Tensor]):
    """Tensors in safetensors files, each a view of the mapped file: copy what is to stay.

    The file is mapped anew for every tensor, since the pages that reading brings in count as the
    process's memory for as long as their mapping lives.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files: dict[str, Path] = {}
        self.layout: dict[str, Tensor] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    found = {name: file.get_tensor(name).to("meta") for name in file.keys()}
            except (SafetensorError, OSError, RuntimeError) as error:
                message = f"{path}: not a whole safetensors file: {error}"
                raise CheckpointError(message) from error
            if twice := sorted(found.keys() & self.layout.keys()):
                raise CheckpointError(f"{path}: in another shard, too: {twice[:SHOWN]}")
            self.layout |= found
            self.files |= dict.fromkeys(found, path)

    def __getitem__(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)


def weights_file(folder: Path) -> Path | None:
    """The one safetensors file of a folder, or the index of its shards."""
    return next((folder / n for n in (SINGLE, INDEX) if (folder / n).is_file()), None)


def open_weights(path: Path) -> TensorFiles:
    """A safetensors file, or all shards that an index names."""
    return TensorFiles(shards(path) if path.name.endswith(".index.json") else [path])


def shards(index: Path) -> list[Path]:
    """The files beside an index that it names, each once."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if elsewhere := sorted(n for n in names if Path(n).name != n):
            raise ValueError(f"names files elsewhere: {elsewhere[:SHOWN]}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index}: not an index of shards: {error}") from error
    files = [index.parent / name for name in sorted(names)]
    if missing := [path.name for path in files if not path.is_file()]:
        raise CheckpointError(f"{index.parent} lacks the shards {missing[:SHOWN]}")
    return files


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A `.safetensors` file, or one of torch's holding nothing but tensors."""
    if path.suffix != ".safetensors":
        return as_tensors(read_torch(path), path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_torch(path: Path) -> object:
    """What torch saved, if it is nothing but tensors, numbers, texts and their containers."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to let the code run
        message = f"{path}: holds more than tensors; refused, since a pickle may run code"
        raise CheckpointError(message) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def as_tensors(saved: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(f"{path}: not a flat state dict")
    return dict(saved)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """A model as Hugging Face saves it: one file, or shards listed in an index."""
    for name in (SINGLE, "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            return {k: v for shard in shards(index) for k, v in read_tensors(shard).items()}
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor pytorch_model.bin")


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
