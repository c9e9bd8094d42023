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
from .native import can_take
from .native.attention import attend

PICTURES_AT_ONCE = 4  # measured: fewer repeat the weights, more leave the cache
QUICK_GELU = 1.702  # x · sigmoid(1.702 x), which is silu(1.702 x) / 1.702


class PackedTower(nn.Module):
    """[N, 3, size, size] → [N, S, dim], as the tower it was made of."""

    def __init__(self, theirs: Any, num_skipped: int, kind: str) -> None:
        super().__init__()
        self.embeddings, self.norm = PackedEmbeddings(theirs.embeddings), theirs.pre_layrnorm
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


class PackedEmbeddings(nn.Module):
    """[N, 3, size, size] → [N, 1 + patches, dim]: one product, where theirs is a convolution.

    In float32 of every kind: it is half a percent of the work, and all else is made of it.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        conv, places = theirs.patch_embedding, theirs.position_embedding(theirs.position_ids)
        self.side = conv.kernel_size[0]
        self.patches = pack_linear(conv.weight.flatten(1), conv.bias, "float32")
        self.class_token = theirs.class_embedding + places[:, :1]  # [1, 1, dim]
        self.places = places[:, 1:]

    def forward(self, pixels: Tensor) -> Tensor:
        patches = pixels.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        seen = self.patches(patches) + self.places
        return torch.cat([self.class_token.expand(len(pixels), -1, -1), seen], dim=1)


class PackedLayer(nn.Module):
    """Pre-norm attention and feed-forward; q, k and v are one product."""

    def __init__(self, theirs: Any, kind: str) -> None:
        super().__init__()
        attention, mlp = theirs.self_attn, theirs.mlp
        self.num_heads = attention.num_heads
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, bias = (torch.cat([getattr(x, name) for x in three]) for name in ("weight", "bias"))
        self.qkv = pack_linear(weight, bias, kind, norm=theirs.layer_norm1)
        self.out = pack_linear(attention.out_proj.weight, attention.out_proj.bias, kind)
        make = ACTIVATIONS[type(mlp.activation_fn).__name__]
        self.up, self.down = make(mlp, theirs.layer_norm2, kind)
        for linear in (self.qkv, self.out, self.up, self.down):
            linear.spend_input()  # norms, attended values and activations are read by it alone

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, dim] → the same"""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [N, S, 3, heads, D]
        x = self.out(attended(*qkv.unbind(2)).flatten(2), x)
        out: Tensor = self.down(self.up(x), x)
        return out


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each of q [N, T, heads, D] looks at all of k and v [N, S, heads, D]."""
    if can_take(q):
        return attend(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


Branch = tuple[PackedLinear, PackedLinear]


def exact_gelu(mlp: Any, norm: nn.Module, kind: str) -> Branch:
    up = pack_linear(mlp.fc1.weight, mlp.fc1.bias, kind, activation=F.gelu, norm=norm)
    return up, pack_linear(mlp.fc2.weight, mlp.fc2.bias, kind)


def quick_gelu(mlp: Any, norm: nn.Module, kind: str) -> Branch:
    """Its factors go into the weights: one pass over the widest activations, not three."""
    weight, bias = mlp.fc1.weight * QUICK_GELU, mlp.fc1.bias * QUICK_GELU
    up = pack_linear(weight, bias, kind, activation=F.silu, norm=norm)
    return up, pack_linear(mlp.fc2.weight / QUICK_GELU, mlp.fc2.bias, kind)


ACTIVATIONS: dict[str, Callable[[Any, nn.Module, str], Branch]] = {
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
