"""Weights on disk: safetensors and what torch saved, whole or in shards, read when asked for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .lazy import all_lazy
from .weights import SHOWN, CheckpointError, Weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LEAST_MAPPED = 16 * 2**20


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


class TorchFile:
    """The tensors in a file of torch's that holds nothing else, or what training saves beside them.

    The file is mapped anew after every 32nd part of it, for the reason given above. One in the
    form of torch before 1.6 cannot be mapped and is held whole.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.num_read = path, 0
        self.tensors = self.open()
        self.most_read = max(path.stat().st_size // 32, LEAST_MAPPED)
        self.layout = {name: tensor.to("meta") for name, tensor in self.tensors.items()}

    def open(self) -> dict[str, Tensor]:
        saved, self.is_mapped = read_torch(self.path)
        return as_tensors(state_of(saved), self.path)

    def __getitem__(self, name: str) -> Tensor:
        if self.is_mapped and self.num_read > self.most_read:
            self.num_read, self.tensors = 0, {}
            self.tensors = self.open()
        tensor = self.tensors[name]
        self.num_read += tensor.nbytes
        return tensor


def read_torch(path: Path) -> tuple[object, bool]:
    """What torch saved, if it is nothing but tensors, numbers, texts and their containers.

    And whether it is mapped, which files in the oldest form cannot be.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:  # torch's own text advises to let the code run
        message = f"{path}: holds more than tensors; refused, since a pickle may run code"
        raise CheckpointError(message) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def state_of(saved: object) -> object:
    """Flat, or within what training saves beside it."""
    if isinstance(saved, dict) and "model_state_dict" in saved:
        return saved["model_state_dict"]
    return saved


def as_tensors(saved: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(f"{path}: not a flat state dict")
    return dict(saved)


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of one of torch's, still in it."""
    weights: Weights = TensorFiles([path]) if path.suffix == ".safetensors" else TorchFile(path)
    return all_lazy(weights)


def open_model(folder: Path) -> dict[str, Tensor]:
    """A model as Hugging Face saves it: one file, or shards listed in an index."""
    for name in (SINGLE, "pytorch_model.bin"):
        if (folder / name).is_file():
            return open_file(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            return joined(shards(index))
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor pytorch_model.bin")


def joined(files: Sequence[Path]) -> dict[str, Tensor]:
    tensors = dict[str, Tensor]()
    for path in files:
        found = open_file(path)
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(f"{path}: in another shard, too: {twice[:SHOWN]}")
        tensors |= found
    return tensors
