"""`flamingo train`'s TOML file as frozen dataclasses; each default is written here alone.

Unknown keys raise with their name and what is allowed. Paths are relative to the file's folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ..checkpoints.families import PARTS
from ..config import fits

T = TypeVar("T")
STAGES = ("flamingo", "contrastive", "language")
WHAT = ("resampler", "cross_attention", "embeddings", "lora", "vision")
DEFAULT_WHAT = ("resampler", "cross_attention")
PARTS_OF_MODEL = ("vision", "resampler", "cross_attention", "decoder")
ACCUMULATIONS = ("accumulate", "round_robin", "merged")
AUGMENTATIONS = ("flip", "colour")
WINDOWS = ("random", "first")
CHANGEABLE = ("steps", "save_every", "evaluate_every", "log_every", "workers", "device")
"""Of `[train]`: what a resumed run may have otherwise than the run it goes on with."""


class TrainingError(Exception):
    """A run that cannot begin or go on; the message is for whoever started it."""


class ConfigError(TrainingError, ValueError):
    """The message says which table and key, and what is allowed."""


@dataclass(frozen=True)
class ModelConfig:
    """`base` is what `flamingo serve` takes, and so are the keys after it.

    Parts in `fresh` begin at random; where all of `PARTS_OF_MODEL` do, `base` is a folder that
    needs no weights, only config.json and tokenizer.json.
    """

    base: str
    family: str = "auto"
    lm: str | None = None
    vision: str | None = None
    cross_attention_interval: int | None = None
    lora: str | None = None
    media_rule: str | None = None
    fresh: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known("model.fresh", self.fresh, PARTS_OF_MODEL)

    def parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PARTS}


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; defaults are the paper's (Alayrac et al. 2022, section B.1), less its scale.

    `what` is for the stage `flamingo` alone. `schedule` is the rate after a linear `warm_up`, in
    steps. `accumulation`: `accumulate` takes a batch of every dataset each step, one after the
    other, the largest first; `merged` takes them as one; `round_robin` takes one dataset a step.
    """

    steps: int
    stage: str = "flamingo"
    what: tuple[str, ...] = DEFAULT_WHAT
    rate: float = 1e-4
    warm_up: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    seed: int = 0
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    accumulation: str = "accumulate"
    max_bad_share: float = 0.01
    save_every: int = 500
    evaluate_every: int = 500
    log_every: int = 1
    workers: int = 2  # threads that read pictures ahead; 0: read when wanted
    device: str = "auto"

    def __post_init__(self) -> None:
        known("train.stage", [self.stage], STAGES)
        known("train.what", self.what, WHAT)
        known("train.schedule", [self.schedule], ("constant", "cosine"))
        known("train.precision", [self.precision], ("fp32", "bf16"))
        known("train.accumulation", [self.accumulation], ACCUMULATIONS)
        if not self.what:
            raise ConfigError(f"train.what is empty; known: {', '.join(WHAT)}")
        for name in ("steps", "save_every", "evaluate_every", "log_every"):
            at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("warm_up", "seed", "workers", "weight_decay", "max_bad_share"):
            at_least(f"train.{name}", getattr(self, name), 0)
        if self.stage != "flamingo" and (
            self.what != DEFAULT_WHAT or self.accumulation == "merged"
        ):
            raise ConfigError('train.what and accumulation "merged" are for the stage "flamingo"')
        if self.stage == "contrastive" and self.gradient_checkpointing:
            raise ConfigError("train.gradient_checkpointing is not for the stage 'contrastive'")
        if not self.rate > 0 or not self.clip > 0:
            raise ConfigError("train.rate and train.clip must be above 0")


@dataclass(frozen=True)
class DatasetConfig:
    """`weight` is λ, `batch` documents a step, `length` tokens and `max_media` media a document.

    Of a document with more, `window` says where a row of it begins: `first` where the document
    does, `random` there or at any of its media, drawn anew each time.

    `end_of_text` follows a document's last chunk, where the family has such a token and the row
    comes that far: as the paper and flamingo-mini train. `p_next` is how often text sees the media
    after it, `leading_space` how often a blank is put before the text of a media.

    `options` go to the format's reader as they are. A `held_out` dataset is never learned: its loss
    is logged.
    """

    path: str
    name: str = ""
    format: str = "auto"
    weight: float = 1.0
    batch: int = 8
    length: int = 256
    max_media: int = 5
    window: str = "random"
    end_of_text: bool = True
    max_frames: int = 8
    fps: float = 1.0
    p_next: float = 0.0
    leading_space: float = 0.0
    augment: tuple[str, ...] = ()
    learn_questions: bool = False
    held_out: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known("datasets.augment", self.augment, AUGMENTATIONS)
        known("datasets.window", [self.window], WINDOWS)
        for name, least in (("batch", 1), ("length", 2), ("max_media", 0), ("max_frames", 1)):
            at_least(f"datasets.{name}", getattr(self, name), least)
        for name in ("p_next", "leading_space"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"datasets.{name} is a probability, not {getattr(self, name)}")
        if not self.weight > 0 or not self.fps > 0:
            raise ConfigError("datasets.weight and datasets.fps must be above 0")

    @property
    def label(self) -> str:
        return self.name or Path(self.path).stem


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of the decoder's linear layers, W + alpha / rank · B A (Hu et al. 2021)."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "k", "v", "out", "gate", "up", "down")

    def __post_init__(self) -> None:
        known("lora.targets", self.targets, ("q", "k", "v", "out", "gate", "up", "down"))
        at_least("lora.rank", self.rank, 1)


@dataclass(frozen=True)
class ContrastiveConfig:
    """The text encoder and the joint space of the stage `contrastive`."""

    dim: int = 256
    text_width: int = 256
    text_layers: int = 4
    text_heads: int = 4
    label_smoothing: float = 0.0
    temperature: float = 0.07
    max_scale: float = 100.0


@dataclass(frozen=True)
class OutputConfig:
    """Where state, logs and result go; `kind` is an `adapter` or a whole native `checkpoint`."""

    folder: str
    kind: str = "adapter"
    name: str = ""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        known("output.kind", [self.kind], ("adapter", "checkpoint"))
        known("output.dtype", [self.dtype], ("float32", "bfloat16", "float16"))

    @property
    def label(self) -> str:
        return self.name or Path(self.folder).name


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    train: TrainConfig
    output: OutputConfig
    datasets: tuple[DatasetConfig, ...]
    lora: LoraConfig = field(default_factory=LoraConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def __post_init__(self) -> None:
        labels = [dataset.label for dataset in self.datasets]
        if not any(not dataset.held_out for dataset in self.datasets):
            raise ConfigError("[[datasets]] must name something to learn from")
        if len(set(labels)) < len(labels):
            raise ConfigError(f"[[datasets]] need a `name` where paths end alike: {labels}")
        if self.train.stage != "flamingo" and self.output.kind == "adapter":
            raise ConfigError(f'output.kind must be "checkpoint" for stage {self.train.stage!r}')
        if self.output.kind == "adapter":
            known(
                "model.fresh of an adapter, which must be trained",
                self.model.fresh,
                self.train.what,
            )

    def fingerprint(self) -> str:
        """Of all that decides the numbers: a run goes on only under the same."""
        values = dataclasses.asdict(self)
        for name in CHANGEABLE:
            del values["train"][name]
        del values["output"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


TABLES: dict[str, type[Any]] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "output": OutputConfig,
    "lora": LoraConfig,
    "contrastive": ContrastiveConfig,
}


def load_config(path: Path) -> Config:
    """Raises ConfigError for all that is wrong with the file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(values, path.parent)


def parse(values: dict[str, Any], folder: Path) -> Config:
    known("config", values, (*TABLES, "datasets"))
    if lacking := [name for name in ("model", "train", "output", "datasets") if name not in values]:
        raise ConfigError(f"the config lacks [{'], ['.join(lacking)}]")
    tables = {name: read(cls, values[name], name) for name, cls in TABLES.items() if name in values}
    if not isinstance(values["datasets"], list):
        raise ConfigError("datasets are tables in a list: [[datasets]]")
    datasets = tuple(read(DatasetConfig, found, "datasets") for found in values["datasets"])
    tables["model"] = replace_paths(tables["model"], folder, "base", "lm", "vision", "lora")
    tables["output"] = dataclasses.replace(
        tables["output"], folder=str(folder / tables["output"].folder)
    )
    return Config(datasets=tuple(replace_paths(d, folder, "path") for d in datasets), **tables)


def read(cls: type[T], values: Any, table: str) -> T:
    """Raises ConfigError for an unknown or missing key and for a value of another type."""
    if not isinstance(values, dict):
        raise ConfigError(f"[{table}] must be a table")
    hints = get_type_hints(cls)
    known(table, values, hints)
    for key, value in values.items():
        values[key] = value = tuple(value) if isinstance(value, list) else value
        is_options = key == "options" and isinstance(value, dict)
        if not is_options and not fits(value, hints[key]):
            kind = getattr(hints[key], "__name__", hints[key])
            raise ConfigError(f"{table}.{key} must be {kind}, not {value!r}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"[{table}]: {error}") from error


def replace_paths(table: Any, folder: Path, *names: str) -> Any:
    """What lies beside the config file; names of the hub, addresses and patterns stay."""
    found = {name: getattr(table, name) for name in names}
    kept = {
        name: str(folder / value)
        for name, value in found.items()
        if value and "://" not in value and (name == "path" or (folder / value).exists())
    }
    return dataclasses.replace(table, **kept)


def known(place: str, given: Collection[str], allowed: Collection[str]) -> None:
    for name in given:
        if name not in allowed:
            raise ConfigError(f"{place}: {name!r} is not known; known: {', '.join(allowed)}")


def at_least(place: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"{place} must be at least {least}, not {value}")
