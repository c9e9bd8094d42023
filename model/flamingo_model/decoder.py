"""The frozen language model, described by its config. It knows nothing of pictures.

Every state is an argument: `attend` holds the key/value cache, `before_layer` is where the gated
cross-attention blocks come in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderConfig

SelfAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each [..., heads, head_dim] → attention output of the same shape."""
BeforeLayer = Callable[[int, Tensor], Tensor]


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, [..., 1, head_dim], for positions [...] (RoFormer, in LLaMA's half layout)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions.unsqueeze(-1).float() * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class DecoderLayer(nn.Module):
    """Pre-norm self-attention and SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner, bias = config.num_heads * config.head_dim, config.attention_bias
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.q = nn.Linear(config.dim, inner, bias=bias)
        self.k = nn.Linear(config.dim, inner, bias=bias)
        self.v = nn.Linear(config.dim, inner, bias=bias)
        self.out = nn.Linear(inner, config.dim, bias=False)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.gate = nn.Linear(config.dim, config.ff_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ff_dim, bias=False)
        self.down = nn.Linear(config.ff_dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, layer: int, attend: SelfAttend, cos: Tensor, sin: Tensor
    ) -> Tensor:
        hidden = self.attention_norm(x)
        q, k, v = (self.split(project(hidden)) for project in (self.q, self.k, self.v))
        attended = attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.out(attended.flatten(-2))
        hidden = self.feed_forward_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))
        return out

    def split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1))  # [..., heads, head_dim]


class Decoder(nn.Module):
    """Token ids [...] and positions [...] → final hidden states [..., dim]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: SelfAttend,
        before_layer: BeforeLayer | None = None,
    ) -> Tensor:
        hidden = self.embed(token_ids)
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        for index, layer in enumerate(self.layers):
            if before_layer is not None:
                hidden = before_layer(index, hidden)
            hidden = layer(hidden, index, attend, cos.to(hidden.dtype), sin.to(hidden.dtype))
        out: Tensor = self.norm(hidden)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] → [..., vocab_size]"""
        weight = self.embed.weight if self.config.tie_embeddings else self.head.weight
        return F.linear(hidden, weight)
