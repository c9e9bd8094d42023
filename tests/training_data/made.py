"""Small pictures, films and files of training data, written for a test."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flamingo_model.training.data.document import Document, MediaPart, Record, Source, TextPart


def picture(colour: int = 0, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    """No two `colour`s below 65,536 give the same bytes."""
    file = io.BytesIO()
    Image.new("RGB", size, (colour % 256, colour // 256, 90)).save(file, format)
    return file.getvalue()


def noise(size: tuple[int, int] = (64, 64), format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def tar(path: Path, files: Mapping[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


def pairs(numbers: Iterable[int]) -> dict[str, bytes | str]:
    """Members of a WebDataset shard: a picture and its text for each number."""
    files: dict[str, bytes | str] = {}
    for number in numbers:
        files |= {f"{number:04d}.png": picture(number), f"{number:04d}.txt": f"number {number}"}
    return files


def records(source: Source, start: int = 0, seed: int = 0, epoch: int = 0) -> list[Record]:
    return list(source.epoch(seed, epoch, start))


def documents(source: Source) -> list[Document]:
    """All of them, by place."""
    return sorted((record.read() for record in records(source)), key=lambda found: found.place)


def only(source: Source) -> Document:
    (record,) = records(source)
    return record.read()


def shown(document: Document) -> list[str | tuple[str, bool] | bytes]:
    """Text as a string, with False where it is only read; a picture or film as its bytes."""
    return [as_shown(part) for part in document.parts]


def as_shown(part: TextPart | MediaPart) -> str | tuple[str, bool] | bytes:
    if isinstance(part, MediaPart):
        return part.data
    return part.text if part.learned else (part.text, False)
