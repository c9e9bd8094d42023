"""What stages that learn from files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..config import Config, DatasetConfig
from ..data.document import Document
from ..distributed import World
from ..mixture import Drawn, Mixture, Stream

T = TypeVar("T")


class FilesStage(Generic[T]):
    """A mixture to learn from, and held-out datasets whose first batch is measured."""

    def __init__(
        self, config: Config, learned: Sequence[Stream], held_out: Sequence[Stream], world: World
    ) -> None:
        self.config, self.world = config, world
        train, is_turned = config.train, config.train.accumulation == "round_robin"
        settings = (self.read, world, train.seed, train.max_bad_share)
        self.mixture = Mixture[T](learned, *settings, is_turned, train.workers)
        self.held_out = Mixture[T](held_out, *settings)

    def read(self, document: Document, dataset: DatasetConfig, rng: np.random.Generator) -> T:
        """What is learned from a document. Raises BadRecord."""
        raise NotImplementedError

    def mean_loss(self, drawn: Drawn[T], dataset: DatasetConfig) -> float:
        """Of a batch, over all processes."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.held_out.seek([{}] * len(self.held_out.streams))
        configs = [stream.config for stream in self.held_out.streams]
        return {
            f"held_out/{configs[drawn.dataset].label}": self.mean_loss(
                drawn, configs[drawn.dataset]
            )
            for drawn in self.held_out.read(0)
        }

    def half(self) -> torch.autocast:
        """bfloat16 activations, where the config wants them."""
        is_half = self.config.train.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=is_half)

    def position(self) -> Any:
        return self.mixture.position()

    def seek(self, position: Any) -> None:
        self.mixture.seek(position)
