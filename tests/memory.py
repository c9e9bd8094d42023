"""How much memory a piece of work took at most, in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from families import Case
from flamingo_model.cache import BlockCache
from flamingo_model.checkpoints.checkpoint import Checkpoint
from flamingo_model.checkpoints.families import Parts
from flamingo_model.checkpoints.native import load_native, open_native, save_native
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.checkpoints.writing import write_folder
from flamingo_model.config import FlamingoConfig
from flamingo_model.flamingo import Flamingo
from tiny import tiny_config, tiny_tokenizer

MIB = 2**20
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def load(folder: Path) -> object:
    return load_native(folder)


def convert(folder: Path) -> None:
    target = folder.parent / f"{folder.name}-converted"
    write_folder(open_native(folder), target, torch.bfloat16, shard_bytes=100 * MIB)


def load_opened(folder: Path) -> object:
    return opened(folder).load()


def quantise_opened(folder: Path) -> object:
    return opened(folder).load(quantize="nf4")


def convert_opened(folder: Path) -> None:
    target = folder.parent / f"{folder.name}-converted"
    write_folder(opened(folder), target, torch.bfloat16, shard_bytes=100 * MIB)


def opened(folder: Path) -> Checkpoint:
    """What `remember` wrote down."""
    told = json.loads((folder / "case.json").read_text())
    return open_checkpoint(told["source"], told["family"], Parts(**told["parts"]))


def remember(folder: Path, case: Case) -> None:
    told = {"source": str(case.source), "family": case.family, "parts": vars(case.parts)}
    (folder / "case.json").write_text(json.dumps(told))


def write_one_token(folder: Path) -> object:
    cache = BlockCache(tiny_config(), {"small": 16, "large": 2**17}[folder.name], 16)
    cache.write(0, torch.tensor([5]), *torch.ones(2, 1, 2, 16))
    assert cache.k[0, 5].all()
    return cache


def peak_of(work: Callable[[Path], object], folder: Path) -> int:
    """Bytes above what the process had after its imports and a first, tiny run of the same work."""
    context = get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(work, folder, send))
    process.start()
    send.close()
    try:
        return int(receive.recv())
    finally:
        process.join()


def measure(work: Callable[[Path], object], folder: Path, send: object) -> None:
    torch.set_num_threads(1)
    work(folder / "small")
    before = peak()
    work(folder / "large")
    send.send(peak() - before)  # type: ignore[attr-defined]


def peak() -> int:
    """Linux hands `ru_maxrss` on from the process that started this one; its own is in /proc."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def save_pair(folder: Path, dtype: torch.dtype) -> int:
    """A small checkpoint and a large one of many layers; the large one's bytes in float32."""
    config = tiny_config()
    layers = replace(config.decoder, num_layers=16, dim=512, ff_dim=1536, num_heads=32)
    save(config, folder / "small", dtype)
    return save(replace(config, decoder=layers), folder / "large", dtype)


def save(config: FlamingoConfig, folder: Path, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = Flamingo(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.1, 0.1)
    save_native(model, tiny_tokenizer(), folder, dtype)
    return 4 * sum(parameter.numel() for parameter in model.parameters())
