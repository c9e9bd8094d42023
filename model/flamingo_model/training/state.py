"""A run's state on disk: weights, optimisers, where the data stands. Nothing else is remembered.

A file is written beside, flushed to the disk and moved into place, so that whenever a process is
killed the newest file is whole. It holds whole tensors: any number of processes goes on with it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config import TrainingError
from .distributed import ALONE, World, fill, full
from .optimise import parameters, trained_weights

if TYPE_CHECKING:
    from .loop import Stage

logger = logging.getLogger("flamingo_model.training")
KEPT = 2


class StateError(TrainingError):
    """The folder's state is of another run; the message says what to do."""


@dataclass(frozen=True)
class States:
    """The states in a run's folder; `fingerprint` is of the config that decides its numbers."""

    folder: Path
    fingerprint: str = ""
    world: World = ALONE

    def save(self, step: int, stage: Stage, optimisers: list[torch.optim.Optimizer]) -> None:
        """After `step` steps. Every process must ask; the first writes."""
        values = {
            "fingerprint": self.fingerprint,
            "step": step,
            "weights": trained_weights(stage.module),
            "optimisers": [whole(optimiser) for optimiser in optimisers],
            "position": stage.position(),
        }
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(values, self.folder / f"state-{step:08}.pt")
            for old in self.files()[:-KEPT]:
                old.unlink()
        self.world.wait()

    def resume(self, stage: Stage, optimisers: list[torch.optim.Optimizer]) -> int:
        """Brings back the newest state; how many steps it has behind it, 0 without one.

        Raises StateError for one of another config.
        """
        values = self.newest()
        if values is None:
            return 0
        if values["fingerprint"] != self.fingerprint:
            raise StateError(
                f"{self.folder} has the state of a run with another config: "
                "choose another output.folder, or give --restart to throw that state away"
            )
        named = dict(stage.module.named_parameters())
        for name, tensor in values["weights"].items():
            fill(named[name], tensor)
        for optimiser, saved in zip(optimisers, values["optimisers"], strict=True):
            bring_back(optimiser, saved)
        stage.seek(values["position"])
        step: int = values["step"]
        return step

    def newest(self) -> dict[str, Any] | None:
        """The newest that can be read: a disk that was full may have left a broken one."""
        for path in reversed(self.files()):
            try:
                values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return values
            except Exception as error:  # torch has many names for damage
                logger.warning("%s cannot be read: %s", path, error)
        return None

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.pt"))

    def clear(self) -> None:
        for path in self.files():
            path.unlink()


def write_atomically(values: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, must be on the disk
    finally:
        os.close(folder)


def whole(optimiser: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What it remembers of each parameter, in order."""
    return [
        {name: full(x) for name, x in optimiser.state.get(parameter, {}).items()}
        for parameter in parameters(optimiser)
    ]


def bring_back(optimiser: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    for parameter, values in zip(parameters(optimiser), saved, strict=True):
        if not values:
            continue
        state: dict[str, Any] = optimiser.state[parameter]
        for name, value in values.items():
            if value.shape == parameter.shape and value.ndim:
                state[name] = torch.zeros_like(parameter)
                fill(state[name], value)
            else:
                state[name] = value.to(parameter.device)
