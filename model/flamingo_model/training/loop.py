"""The one training loop. It knows no pictures, text or files: a `Stage` does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .config import TrainConfig, TrainingError
from .distributed import World, shard
from .optimise import Group, build_optimisers, clip_gradients, parameters, set_rate
from .report import Report
from .state import States


class Term(NamedTuple):
    """A part of a step's loss; its gradients are added to those of the others.

    `figures` are this process's part of numbers that are summed over all processes.
    """

    loss: Tensor
    figures: Mapping[str, float]


class Stage(Protocol):
    """One kind of training.

    All that is random in a step must come from its number and the seed, or from torch, which is
    seeded before each step: a run that goes on has no other state than `position`.
    """

    @property
    def module(self) -> nn.Module:
        """Holds every parameter; those that require gradients are trained."""
        ...

    def units(self) -> list[nn.Module]:
        """What is gathered piece by piece where weights are in shards."""
        ...

    def groups(self) -> list[Group]:
        """All trained parameters."""
        ...

    def terms(self, step: int) -> Iterator[Term]:
        """The losses of a step, one after the other, each asked for once the last is done with.

        Of this process's share, in parts of the whole: their sum over processes is the loss.
        """
        ...

    def evaluate(self) -> dict[str, float]: ...

    def position(self) -> Any:
        """Where the data stands, as plain values."""
        ...

    def seek(self, position: Any) -> None: ...


class NotFinite(TrainingError):
    """The gradients are no numbers any more."""


@dataclass(frozen=True)
class Loop:
    config: TrainConfig
    world: World
    report: Report
    states: States

    def run(self, stage: Stage) -> None:
        """Trains in place, from the newest state to the last step."""
        shard(stage.module, stage.units(), self.world)
        optimisers = build_optimisers(stage.groups(), self.config)
        first = self.states.resume(stage, optimisers)
        self.report.rewind(first)
        for step in self.report.steps(first, self.config.steps):
            figures = self.step(stage, optimisers, step)
            if self.is_due(step, self.config.evaluate_every):
                figures |= stage.evaluate()
            self.report.write(step, figures)
            if self.is_due(step, self.config.save_every):
                self.states.save(step + 1, stage, optimisers)

    def step(
        self, stage: Stage, optimisers: list[torch.optim.Optimizer], step: int
    ) -> dict[str, float]:
        torch.manual_seed((self.config.seed << 32) + step)
        rate = set_rate(optimisers, self.config, step)
        sums: dict[str, float] = {}
        for term in stage.terms(step):
            (term.loss * self.world.size).backward()  # shards are averaged, not summed
            for name, value in term.figures.items():
                sums[name] = sums.get(name, 0.0) + value
        learned = [p for optimiser in optimisers for p in parameters(optimiser)]
        self.world.average(p.grad for p in learned if p.grad is not None and p.ndim == 0)
        norm = clip_gradients(learned, self.config.clip)
        if not math.isfinite(norm):
            raise NotFinite(f"step {step + 1}: the gradients are not finite; lower train.rate")
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        summed = dict(zip(sums, self.world.sum(sums.values()), strict=True))
        return summed | {"gradient": norm, "rate": rate}

    def is_due(self, step: int, every: int) -> bool:
        return (step + 1) % every == 0 or step + 1 == self.config.steps
