"""One process or many: who reads what, sums over all, and weights in shards (FSDP2).

Every process takes its share of every batch and divides by counts over all of them, so that the
number of processes changes nothing but rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all. `mesh` is None where there is no other."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """This process's items, each with its number among all."""
        return [(i, item) for i, item in enumerate(items) if i % self.size == self.rank]

    def sum(self, numbers: Iterable[float]) -> list[float]:
        return self.reduce(numbers, dist.ReduceOp.SUM)

    def most(self, numbers: Iterable[float]) -> list[float]:
        return self.reduce(numbers, dist.ReduceOp.MAX)

    def reduce(self, numbers: Iterable[float], how: Any) -> list[float]:
        values = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        if self.mesh is not None and len(values):
            dist.all_reduce(values, how)
        out: list[float] = values.tolist()
        return out

    def gather(self, rows: Tensor) -> Tensor:
        """[n, dim] of every process, one under the other; gradients flow to this one's alone."""
        if self.mesh is None:
            return rows
        counts = [
            round(n) for n in self.sum([len(rows) * (self.rank == r) for r in range(self.size)])
        ]
        sent = rows.detach().new_zeros(max(counts), *rows.shape[1:])
        sent[: len(rows)] = rows.detach()
        found = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(found, sent)
        parts = [part[:count] for part, count in zip(found, counts, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """In place: what shards do by themselves, for what is whole everywhere."""
        for tensor in tensors if self.mesh is not None else ():
            dist.all_reduce(tensor)
            tensor /= self.size

    def wait(self) -> None:
        if self.mesh is not None:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The world that `torchrun` made, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(place, dist.get_rank(), size, init_device_mesh(place.type, (size,)))
    finally:
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return torch.device(name)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def shard(root: nn.Module, units: Iterable[nn.Module], world: World) -> None:
    """Each unit's weights are gathered for its own use only, the rest for the whole of a step.

    Scalars, such as gates, cannot be cut: they stay whole everywhere.
    """
    if world.mesh is None:
        return
    whole = {p for p in root.parameters() if p.ndim == 0}
    for module in (*units, root):
        fully_shard(module, mesh=world.mesh, ignored_params=whole)
        if hasattr(module, "project_media"):
            register_fsdp_forward_method(module, "project_media")


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor on the CPU; every process must ask."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()


def fill(target: Tensor, whole: Tensor) -> None:
    """Writes a whole tensor into one that may be in shards."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            whole = whole.to(target.device)
            target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
        else:
            target.copy_(whole)
