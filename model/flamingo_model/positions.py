"""Where a token stands: learned tables, rotary turns, ALiBi, and the window it looks back over.

A kind of positions has up to three places to act: the embedding, queries and keys, the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import DecoderConfig

Turn = Callable[[Tensor], Tensor]
"""Queries or keys [..., heads, head_dim] → the same, turned to their positions."""


@dataclass(frozen=True)
class Reach:
    """Which keys a query sees, and with what handicap: causal, windowed, sloped (ALiBi)."""

    slopes: tuple[float, ...] = ()  # one per query head; empty: no ALiBi
    window: int | None = None  # the last tokens seen, itself included; None: all

    @property
    def is_plain(self) -> bool:
        """Causal and nothing else, which fused kernels do without a mask."""
        return not self.slopes and self.window is None

    def seen(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions [..., T] and [S] → booleans [..., 1, T, S]"""
        distance = (queries.unsqueeze(-1) - keys).unsqueeze(-3)
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """What is added to the scores, float32 [..., heads, T, S]"""
        if not self.slopes:
            return None
        slopes = torch.tensor(self.slopes, device=keys.device).view(-1, 1, 1)
        return -slopes * (queries.unsqueeze(-1) - keys).unsqueeze(-3)

    def mask(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Both in one, as fused kernels take it: booleans, or with ALiBi a bias of `dtype`."""
        seen, bias = self.seen(queries, keys), self.bias(queries, keys)
        return seen if bias is None else bias.masked_fill(~seen, -torch.inf).to(dtype)


def reach(config: DecoderConfig) -> Reach:
    return Reach(POSITIONS[config.positions].slopes(config), config.sliding_window)


class Positions(nn.Module):
    """By itself it does nothing; each kind says where it acts."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()

    def add(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Embeddings [..., dim] at positions [...]"""
        return hidden

    def turn(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        return lambda x: x

    @staticmethod
    def slopes(config: DecoderConfig) -> tuple[float, ...]:
        return ()


class Rotary(Positions):
    """RoFormer in LLaMA's half layout; with `rotary_dim` only the first part of a head turns."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.dim, self.theta = config.turned_dim, config.rope_theta

    def turn(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        cos, sin = (x.to(dtype) for x in self.angles(positions))
        return lambda x: self.apply_to(x, cos, sin)

    def apply_to(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if x.shape[-1] == self.dim:
            return self.rotate(x, cos, sin)
        first, rest = x[..., : self.dim], x[..., self.dim :]
        return torch.cat([self.rotate(first, cos, sin), rest], dim=-1)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(positions, self.dim, self.theta)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(x, cos, sin)


class InterleavedRotary(Rotary):
    """GPT-J's layout: neighbours are a pair."""

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(positions, self.dim, self.theta)
        half = self.dim // 2
        return cos[..., :half].repeat_interleave(2, -1), sin[..., :half].repeat_interleave(2, -1)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin


class Learned(Positions):
    """A row per position, added to the embedding (GPT-2)."""

    offset = 0

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.max_positions + self.offset, config.dim)

    def add(self, hidden: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = hidden + self.table(positions + self.offset)
        return out


class LearnedOffset2(Learned):
    """OPT's table starts with two rows that nothing reads."""

    offset = 2


class Alibi(Positions):
    """Scores fall linearly with distance; head counts are rounded up to a power of two (MPT)."""

    @staticmethod
    def slopes(config: DecoderConfig) -> tuple[float, ...]:
        rounded = 2 ** math.ceil(math.log2(config.num_heads))
        slopes = geometric(rounded, config.alibi_max_bias)
        if rounded != config.num_heads:
            slopes = slopes[1::2] + slopes[::2]
        return slopes[: config.num_heads]


class UnroundedAlibi(Positions):
    """The slopes of MPT-1B, whatever the number of heads."""

    @staticmethod
    def slopes(config: DecoderConfig) -> tuple[float, ...]:
        return geometric(config.num_heads, config.alibi_max_bias)


def geometric(num: int, max_bias: float) -> tuple[float, ...]:
    return tuple(2.0 ** (-max_bias * i / num) for i in range(1, num + 1))


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, [..., 1, head_dim], for positions [...] (RoFormer, in LLaMA's half layout)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions.unsqueeze(-1).float() * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


POSITIONS: dict[str, type[Positions]] = {
    "rotary": Rotary,
    "rotary_interleaved": InterleavedRotary,
    "learned": Learned,
    "learned_offset_2": LearnedOffset2,
    "alibi": Alibi,
    "alibi_unrounded": UnroundedAlibi,
}
