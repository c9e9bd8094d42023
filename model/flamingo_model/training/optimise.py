"""Optimisers, the rate over time, and the clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .distributed import full


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike; `decays` says whether weight decay pulls on them.

    `rule` is `adamw` or, for matrices and the weights of convolutions, `muon`; `rate` is a factor
    on the run's rate.
    """

    parameters: Mapping[str, nn.Parameter]
    decays: bool = True
    rule: str = "adamw"
    rate: float = 1.0


def build_optimisers(groups: list[Group], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """One for each rule. Raises ValueError for an unknown one."""
    if unknown := {group.rule for group in groups} - {"adamw", "muon"}:
        raise ValueError(f"no optimiser {sorted(unknown)}; known: adamw, muon")
    built: list[torch.optim.Optimizer] = []
    for rule in ("adamw", "muon"):
        chosen = [
            {
                "params": [*group.parameters.values()],
                "weight_decay": config.weight_decay if group.decays else 0.0,
                "factor": group.rate,
            }
            for group in groups
            if group.rule == rule and group.parameters
        ]
        if chosen and rule == "adamw":
            built.append(torch.optim.AdamW(chosen, lr=config.rate, betas=config.betas, fused=True))
        elif chosen:
            built.append(Muon(chosen, lr=config.rate, adjust_lr_fn="match_rms_adamw"))
    return built


class Muon(torch.optim.Muon):
    """Torch's, of the weights of convolutions too: each output's are a row."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        with as_matrices(p for group in groups for p in group["params"]):
            super().__init__(groups, **options)

    def step(self, closure: Any = None) -> Any:
        with as_matrices(parameters(self)):
            return super().step(closure)  # type: ignore[no-untyped-call]


@contextmanager
def as_matrices(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Those of more than two dimensions, and their gradients, have only two for as long."""
    kept = [(weight, weight.shape, weight.grad) for weight in weights if weight.ndim > 2]
    for weight, _, gradient in kept:
        weight.grad = None  # whose shape must be the weight's
        weight.data = weight.data.flatten(1)
        weight.grad = None if gradient is None else gradient.flatten(1)
    try:
        yield
    finally:
        for weight, shape, gradient in kept:
            weight.grad = None
            weight.data = weight.data.view(shape)
            weight.grad = gradient


def parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order of its groups."""
    return [p for group in optimiser.param_groups for p in group["params"]]


def set_rate(optimisers: list[torch.optim.Optimizer], config: TrainConfig, step: int) -> float:
    """The rate of this step, the first being 0: a function of its number, so not a state."""
    rate = config.rate * schedule(step, config)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
    return rate


def schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then constant (paper, section B.1.2) or down a cosine to 0."""
    if config.schedule == "constant" and step >= config.warm_up:
        return 1.0
    return warmup_cosine(step, config.steps, config.warm_up)


def warmup_cosine(step: int, num_steps: int, warmup: int) -> float:
    """A factor on the learning rate: linear up, cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def clip_gradients(learned: Iterable[nn.Parameter], limit: float) -> float:
    """Scales all gradients so that their norm is `limit` at most; gives the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(learned, limit)
    return full(norm).item()


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Whole, on the CPU; every process must ask."""
    return {name: full(p) for name, p in trained(module).items()}


def split_decay(learned: Mapping[str, nn.Parameter], never: tuple[str, ...]) -> list[Group]:
    """Weight decay on matrices alone, and on none whose name starts with one of `never`."""
    decays = {k: p for k, p in learned.items() if p.ndim > 1 and not k.startswith(never)}
    rest = {k: p for k, p in learned.items() if k not in decays}
    return [Group(decays), Group(rest, decays=False)]
