"""`flamingo train CONFIG.toml`: from a config to a result, or on from where one stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .base import Base, load_base
from .config import Config, DatasetConfig
from .data import source
from .data.document import Source
from .distributed import World, joined
from .loop import Loop, Stage
from .mixture import Stream
from .report import Report, draw_curves
from .result import base_digest, write_result
from .stages.contrastive import ContrastiveStage
from .stages.flamingo import FlamingoStage
from .stages.language import LanguageStage
from .state import States

Open = Callable[[DatasetConfig], Source]
STAGES: dict[str, Callable[..., Stage]] = {
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
        stage = build_stage(config, base, world, open_source)
        report = Report(
            folder if world.is_first else None, config.output.label, config.train.log_every
        )
        Loop(config.train, world, report, states).run(stage)
        if report.path is not None:
            draw_curves(report.path, folder / "curves.png")
        return write_result(base, stage.module, config, digest, world)


def build_stage(config: Config, base: Base, world: World, open_source: Open) -> Stage:
    streams = [Stream(open_source(d), d, config.train.seed) for d in config.datasets]
    learned: Sequence[Stream] = [s for s in streams if not s.config.held_out]
    held_out: Sequence[Stream] = [s for s in streams if s.config.held_out]
    return STAGES[config.train.stage](base, config, learned, held_out, world)
