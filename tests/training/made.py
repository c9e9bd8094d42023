"""Made-up documents, sources and runs for the tests of training."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from flamingo_model.config import FlamingoConfig
from flamingo_model.training.base import Base
from flamingo_model.training.config import Config, DatasetConfig, parse
from flamingo_model.training.data.document import (
    BadRecord,
    Document,
    MediaPart,
    Record,
    TextPart,
)
from flamingo_model.training.distributed import ALONE, World
from flamingo_model.training.loop import Loop, Stage
from flamingo_model.training.mixture import Stream
from flamingo_model.training.report import Report
from flamingo_model.training.run import STAGES
from flamingo_model.training.state import States
from tiny import tiny_model, tiny_tokenizer

NAMES = ("red", "green", "blue", "white", "black", "pink", "grey", "gold")


def picture(number: int, size: int = 16) -> bytes:
    """A PNG of one colour with some noise, another for each number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 200, 3) + rng.integers(0, 56, (size, size, 3))
    pixels = pixels.astype(np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def film(number: int, num_frames: int, size: int = 16) -> bytes:
    """An animation of one frame a second."""
    frames = [Image.open(io.BytesIO(picture(100 * number + i, size))) for i in range(num_frames)]
    return encoded(frames[0], "WEBP", append_images=frames[1:], duration=1000, lossless=True)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, save_all="append_images" in options, **options)
    return file.getvalue()


def caption(number: int, text: str | None = None) -> Document:
    """A picture and its text."""
    said = TextPart(text or NAMES[number % len(NAMES)])
    return Document((MediaPart("image", picture(number)), said), f"made:{number}")


def captions(num: int) -> list[Document]:
    return [caption(i) for i in range(num)]


@dataclass
class ListSource:
    """Documents in an order drawn from seed and epoch; `bad` ones cannot be read."""

    documents: Sequence[Document]
    bad: frozenset[int] = frozenset()
    opened: list[int] = field(default_factory=list)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Record]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.documents))
        for number in order[start:].tolist():
            yield Record(f"made:{number}", lambda number=number: self.read(number))

    def read(self, number: int) -> Document:
        self.opened.append(number)
        if number in self.bad:
            raise BadRecord(f"made:{number}: broken")
        return self.documents[number]


def config(folder: Path, *datasets: dict[str, Any], **tables: dict[str, Any]) -> Config:
    """A short run's config; `tables` add to its own."""
    values: dict[str, Any] = {
        "model": {"base": "none", **tables.pop("model", {})},
        "train": {"steps": 4, "rate": 1e-3, "workers": 0, "save_every": 1000}
        | tables.pop("train", {}),
        "output": {"folder": "run", **tables.pop("output", {})},
        "datasets": [{"path": "made", "batch": 4, "length": 32, **d} for d in datasets or ({},)],
        **tables,
    }
    return parse(values, folder)


def base(seed: int = 0, gate: float = 0.0, shape: FlamingoConfig | None = None) -> Base:
    return Base(tiny_model(seed, gate, config=shape), tiny_tokenizer(), None)


def stage(
    config: Config,
    sources: Sequence[ListSource],
    world: World = ALONE,
    start: Base | None = None,
) -> Stage:
    streams = [
        Stream(source, dataset, config.train.seed)
        for source, dataset in zip(sources, config.datasets, strict=True)
    ]
    return STAGES[config.train.stage](start or base(), config, streams, world)


def train(
    config: Config,
    sources: Sequence[ListSource],
    world: World = ALONE,
    start: Base | None = None,
) -> Stage:
    """Runs a stage in a process of its own folder, as `run` does with files."""
    built = stage(config, sources, world, start)
    folder = Path(config.output.folder)
    report = Report(folder if world.is_first else None, every=config.train.log_every)
    Loop(config.train, world, report, States(folder, config.fingerprint(), world)).run(built)
    return built


def weights(stage: Stage) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in stage.module.state_dict().items()}


def dataset(**values: Any) -> DatasetConfig:
    return DatasetConfig("made", **values)
