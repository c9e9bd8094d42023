"""ViT towers (CLIP, IDEFICS) made fast on a CPU, a few pictures at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import ClipTower
from .idefics_vision import IdeficsTower
from .linears import PackedLinear, pack_linear

PICTURES_AT_ONCE = 4  # measured: fewer repeat the weights, more leave the cache
QUICK_GELU = 1.702  # x · sigmoid(1.702 x), which is silu(1.702 x) / 1.702


class PackedTower(nn.Module):
    """[N, 3, size, size] → [N, S, dim], as the tower it was made of."""

    def __init__(self, theirs: Any, num_skipped: int, kind: str) -> None:
        super().__init__()
        self.embeddings, self.norm = theirs.embeddings, theirs.pre_layrnorm
        self.layers = nn.ModuleList(PackedLayer(layer, kind) for layer in theirs.encoder.layers)
        self.num_skipped = num_skipped

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.encode(few) for few in pixels.split(PICTURES_AT_ONCE)])

    def encode(self, pixels: Tensor) -> Tensor:
        hidden = self.norm(self.embeddings(pixels))  # [N, 1 + patches, dim]
        for layer in self.layers:
            hidden = layer(hidden)
        out: Tensor = hidden[:, self.num_skipped :]
        return out


class PackedLayer(nn.Module):
    """Pre-norm attention and feed-forward; q, k and v are one product."""

    def __init__(self, theirs: Any, kind: str) -> None:
        super().__init__()
        attention, mlp = theirs.self_attn, theirs.mlp
        self.num_heads = attention.num_heads
        self.norms = nn.ModuleList([theirs.layer_norm1, theirs.layer_norm2])
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, bias = (torch.cat([getattr(x, name) for x in three]) for name in ("weight", "bias"))
        self.qkv = pack_linear(weight, bias, kind)
        self.out = pack_linear(attention.out_proj.weight, attention.out_proj.bias, kind)
        self.up, self.down, self.activation = ACTIVATIONS[type(mlp.activation_fn).__name__](
            mlp, kind
        )
        for linear in (self.qkv, self.out, self.up, self.down):
            linear.spend_input()  # norms, attended values and activations are read by it alone

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        out: Tensor = self.down(self.activation(self.up(self.norms[1](x))))
        return out.add_(x)

    def attention(self, hidden: Tensor) -> Tensor:
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # [N, S, 3, heads, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out


Branch = tuple[PackedLinear, PackedLinear, Callable[[Tensor], Tensor]]


def exact_gelu(mlp: Any, kind: str) -> Branch:
    up = pack_linear(mlp.fc1.weight, mlp.fc1.bias, kind)
    return up, pack_linear(mlp.fc2.weight, mlp.fc2.bias, kind), F.gelu


def quick_gelu(mlp: Any, kind: str) -> Branch:
    """Its factors go into the weights: one pass over the widest activations, not three."""
    up = pack_linear(mlp.fc1.weight * QUICK_GELU, mlp.fc1.bias * QUICK_GELU, kind)
    down = pack_linear(mlp.fc2.weight / QUICK_GELU, mlp.fc2.bias, kind)
    return up, down, lambda x: F.silu(x, inplace=True)


ACTIVATIONS: dict[str, Callable[[Any, str], Branch]] = {
    "QuickGELUActivation": quick_gelu,
    "GELUActivation": exact_gelu,
}


def packed_tower(tower: nn.Module, kind: str) -> nn.Module:
    """The tower itself if it is no ViT of plain layers."""
    if isinstance(tower, ClipTower):
        return PackedTower(tower, tower.num_skipped, kind)
    if isinstance(tower, IdeficsTower):
        return PackedTower(tower.model, 0, kind)
    return tower
