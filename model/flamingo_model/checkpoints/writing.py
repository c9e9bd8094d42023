"""Writes a native checkpoint of any size with one tensor in memory at a time.

The safetensors library writes a file only from tensors that are all there; the format is eight
bytes of length, a JSON header and the data, so it is written here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .files import INDEX, SINGLE
from .weights import CheckpointError

SHARD_BYTES = 5 * 10**9
HEADER_BYTES = 160  # of a tensor's entry in the header, beside its name; rarely as many
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Progress = Callable[[int], object]
"""Called with the bytes of each tensor once it is written."""


class StateDict:
    """A network's tensors as weights to write."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = dict(model.state_dict())
        self.layout = {name: tensor.to("meta") for name, tensor in self.tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].detach().cpu()


def target_layout(checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What will be written: numbers as `dtype`, or as they are stored."""
    return {k: cast(v, dtype) for k, v in checkpoint.weights.layout.items()}


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda num_bytes: None,
) -> None:
    """A whole checkpoint or, where it fails, nothing new: files move into place at the end.

    A checkpoint already in `folder` is replaced, also the very one that is read from.
    """
    layout = target_layout(checkpoint, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, layout)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        partial = Path(name)
        write_weights(checkpoint, layout, partial, shard_bytes, progress)
        checkpoint.tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "config.json").write_text(checkpoint.config.to_json(), encoding="utf-8")
        for old in (*folder.glob("model*.safetensors"), folder / INDEX):
            old.unlink(missing_ok=True)
        for path in partial.iterdir():
            os.replace(path, folder / path.name)


def check_room(folder: Path, layout: Mapping[str, Tensor]) -> None:
    wanted, free = sum(t.nbytes for t in layout.values()), shutil.disk_usage(folder).free
    if wanted > free:
        raise CheckpointError(f"{folder} has room for {free} bytes; the weights take {wanted}")


def write_weights(
    checkpoint: Checkpoint,
    layout: Mapping[str, Tensor],
    folder: Path,
    shard_bytes: int,
    progress: Progress,
) -> None:
    sizes = {k: v.nbytes + len(k) + HEADER_BYTES for k, v in layout.items()}
    parts = list(split(sizes, shard_bytes))
    files = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    files = files if len(parts) > 1 else [SINGLE]
    for file, part in zip(files, parts, strict=True):
        write_file(checkpoint, {name: layout[name] for name in part}, folder / file, progress)
    if len(parts) > 1:
        placed = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        total = sum(tensor.nbytes for tensor in layout.values())
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def split(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in shards of at most `limit` bytes; a tensor above it has a shard of its own."""
    part, used = list[str](), 0
    for name, size in sizes.items():
        if part and used + size > limit:
            yield part
            part, used = [], 0
        part, used = [*part, name], used + size
    yield part


def write_file(
    checkpoint: Checkpoint, layout: Mapping[str, Tensor], path: Path, progress: Progress
) -> None:
    names = sorted(layout, key=lambda n: (-layout[n].itemsize, n))  # so that all are aligned
    head = header(layout, names, {"format": checkpoint.config.format})
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            tensor = cast(checkpoint.weights[name], layout[name].dtype).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            progress(tensor.nbytes)


def header(layout: Mapping[str, Tensor], names: list[str], metadata: dict[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for name in names:
        tensor = layout[name]
        end = begin + tensor.nbytes
        fields[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
