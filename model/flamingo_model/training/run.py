"""`flamingo train CONFIG.toml`: from a config to a result, or on from where one stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import load_base
from .config import Config, DatasetConfig
from .data import source
from .data.document import Source
from .distributed import joined
from .loop import Loop
from .mixture import Stream
from .report import Report, draw_curves
from .result import base_digest, write_result
from .stages.contrastive import ContrastiveStage
from .stages.files import FilesStage
from .stages.flamingo import FlamingoStage
from .stages.language import LanguageStage
from .state import States

Open = Callable[[DatasetConfig], Source]
STAGES: dict[str, type[FilesStage[Any, Any]]] = {
    "flamingo": FlamingoStage,
    "contrastive": ContrastiveStage,
    "language": LanguageStage,
}


def open_dataset(dataset: DatasetConfig) -> Source:
    return source.open_source(dataset.path, dataset.format, **dataset.options)


def run(config: Config, restart: bool = False, open_source: Open = open_dataset) -> Path:
    """Trains to the last step; gives the place of the result.

    Raises TrainingError, CheckpointError, and what the source of a dataset raises.
    """
    folder = Path(config.output.folder)
    with joined(config.train.device) as world:
        base = load_base(config.model, config.train.seed)
        digest = base_digest(base) if config.output.kind == "adapter" else ""
        states = States(folder, config.fingerprint(), world)
        if restart and world.is_first:
            states.clear()
        world.wait()
        streams = [Stream(open_source(d), d, config.train.seed) for d in config.datasets]
        stage = STAGES[config.train.stage](base, config, streams, world)
        report = Report(
            folder if world.is_first else None, config.output.label, config.train.log_every
        )
        Loop(config.train, world, report, states).run(stage)
        if report.path is not None:
            draw_curves(report.path, folder / "curves.png")
        return write_result(base, stage.module, config, digest, world)
