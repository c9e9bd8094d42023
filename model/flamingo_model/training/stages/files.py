"""What stages that learn from files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from ..base import Base
from ..config import Config, DatasetConfig
from ..data.document import Document
from ..distributed import World
from ..loop import Term
from ..mixture import Drawn, Mixture, Stream
from ..optimise import Group

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class FilesStage(ABC, Generic[T, M]):
    """A `Stage` that learns `T`s, made of documents, with a module `M`, made of the base.

    It has a mixture to learn from, and held-out datasets whose first batch is measured.
    """

    def __init__(self, base: Base, config: Config, streams: Sequence[Stream], world: World) -> None:
        self.config, self.world = config, world
        train, is_turned = config.train, config.train.accumulation == "round_robin"
        settings = (self.read, world, train.seed, train.max_bad_share)
        learned = [stream for stream in streams if not stream.config.held_out]
        held_out = [stream for stream in streams if stream.config.held_out]
        self.mixture = Mixture[T](learned, *settings, is_turned, train.workers)
        self.held_out = Mixture[T](held_out, *settings)
        self.module: M = self.build(base)

    @abstractmethod
    def build(self, base: Base) -> M:
        """All that learns and all it needs, on the world's device; keeps what `read` needs."""

    @abstractmethod
    def read(self, document: Document, dataset: DatasetConfig, rng: np.random.Generator) -> T:
        """What is learned from a document. Raises BadRecord."""

    @abstractmethod
    def mean_loss(self, drawn: Drawn[T], dataset: DatasetConfig) -> float:
        """Of a batch, over all processes."""

    @abstractmethod
    def units(self) -> list[nn.Module]: ...

    @abstractmethod
    def groups(self) -> list[Group]: ...

    @abstractmethod
    def terms(self, step: int) -> Iterator[Term]: ...

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
        """bfloat16 activations, where the config wants them.

        Rounded copies of what learns are not kept: nearly all of it is used once.
        """
        is_half = self.config.train.precision == "bf16"
        kind = self.world.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=is_half, cache_enabled=False)

    def position(self) -> Any:
        return self.mixture.position()

    def seek(self, position: Any) -> None:
        self.mixture.seek(position)
