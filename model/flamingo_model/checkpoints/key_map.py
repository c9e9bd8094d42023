"""From the tensor names of a published language model to the decoder's own.

A map knows names and how fused projections come apart; nothing of files, nothing of configs' texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import DecoderConfig
from ..decoder import Decoder
from .hollow import hollow
from .weights import check_depth, complain

Cut = Callable[[Tensor, DecoderConfig], Sequence[Tensor]]


def whole(tensor: Tensor, config: DecoderConfig) -> Sequence[Tensor]:
    return [tensor]


def turned(tensor: Tensor, config: DecoderConfig) -> Sequence[Tensor]:
    """GPT-2 keeps weights as [in, out]."""
    return [tensor.t()]


def thirds(tensor: Tensor, config: DecoderConfig) -> Sequence[Tensor]:
    return tensor.chunk(3)


def turned_thirds(tensor: Tensor, config: DecoderConfig) -> Sequence[Tensor]:
    return tensor.t().chunk(3)


def thirds_of_heads(tensor: Tensor, config: DecoderConfig) -> Sequence[Tensor]:
    """GPT-NeoX keeps q, k and v of the first head, then those of the second, and so on."""
    heads = tensor.unflatten(0, (config.num_heads, 3, config.head_dim))
    return [part.flatten(0, 1) for part in heads.unbind(1)]


@dataclass(frozen=True)
class Into:
    """What one module of theirs becomes: one of ours, or several."""

    names: tuple[str, ...]
    cut: Cut = whole


@dataclass(frozen=True)
class Place:
    """Where a tensor of theirs goes: before the names, the names, and weight or bias."""

    prefix: str
    into: Into
    kind: str

    def targets(self, config: DecoderConfig) -> list[str]:
        return [f"{self.prefix}{self.own(name, config)}.{self.kind}" for name in self.into.names]

    def own(self, name: str, config: DecoderConfig) -> str:
        """A tied head is the embedding: files that hold both must agree."""
        return "embed" if name == "head" and config.tie_embeddings else name


@dataclass
class Translation:
    """Our tensors, whose names in the file they came from, and what could not be placed."""

    ours: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    leftover: set[str] = field(default_factory=set)
    misfits: set[str] = field(default_factory=set)
    conflicts: set[str] = field(default_factory=set)

    def put(self, target: str, tensor: Tensor, source: str) -> None:
        if target in self.ours and not torch.equal(self.ours[target], tensor):
            self.conflicts.add(f"{source} and {self.sources[target]}")
        self.ours[target], self.sources[target] = tensor, source

    def problems(self) -> dict[str, set[str]]:
        return {
            "leftover": self.leftover,
            "wrongly shaped": self.misfits,
            "one tensor with two values": self.conflicts,
        }


@dataclass(frozen=True)
class KeyMap:
    """Names under `base`, which some files leave out; `layers` is the list of layers there."""

    base: str
    layers: str
    top: Mapping[str, Into]
    layer: Mapping[str, Into]
    harmless: tuple[str, ...] = ()  # patterns of whole names: buffers the decoder computes

    def convert(
        self, theirs: Mapping[str, Tensor], config: DecoderConfig, where: str
    ) -> dict[str, Tensor]:
        """A whole model. Raises CheckpointError naming what is missing, left over or misshapen."""
        check_depth(config.num_layers, len(theirs), where)
        with hollow():
            expected = {k: v.shape for k, v in Decoder(config).state_dict().items()}
        found = self.translate(theirs, config)
        problems = found.problems()
        problems["missing"] = {self.their_name(k) for k in expected.keys() - found.ours.keys()}
        problems["leftover"] |= {found.sources[k] for k in found.ours.keys() - expected.keys()}
        problems["wrongly shaped"] |= {
            f"{found.sources[k]}: {k} {list(found.ours[k].shape)} for {list(expected[k])}"
            for k in expected.keys() & found.ours.keys()
            if found.ours[k].shape != expected[k]
        }
        complain(where, problems)
        return found.ours

    def translate(self, theirs: Mapping[str, Tensor], config: DecoderConfig) -> Translation:
        """Any of a model's tensors; nothing is asked about those that are not there."""
        found = Translation()
        for name, tensor in theirs.items():
            short = name.removeprefix(self.base)
            if any(re.fullmatch(pattern, short) for pattern in self.harmless):
                continue
            if (place := self.find(short)) is None:
                found.leftover.add(name)
                continue
            try:
                pieces = place.into.cut(tensor, config)
                for target, piece in zip(place.targets(config), pieces, strict=True):
                    found.put(target, piece if piece is tensor else own_copy(piece), name)
            except (RuntimeError, ValueError):
                found.misfits.add(f"{name} {list(tensor.shape)}")
        return found

    def find(self, short: str) -> Place | None:
        module, _, kind = short.rpartition(".")
        prefix, table = "", self.top
        if match := re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", module):
            prefix, table, module = f"layers.{match[1]}.", self.layer, match[2]
        if kind not in ("weight", "bias") or module not in table:
            return None
        return Place(prefix, table[module], kind)

    def their_name(self, ours: str) -> str:
        """`layers.0.q.weight` → `model.decoder.layers.0.self_attn.q_proj.weight`"""
        module, _, kind = ours.rpartition(".")
        prefix, table = self.base, self.top
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
            prefix, table = f"{self.base}{self.layers}.{match[1]}.", self.layer
            module = match[2]
        for theirs, into in table.items():
            if module in into.names:
                return f"{'' if module == 'head' else prefix}{theirs}.{kind}"
        return ours


def own_copy(piece: Tensor) -> Tensor:
    """A part of a fused tensor, without keeping the whole alive."""
    return piece.clone(memory_format=torch.contiguous_format)
