"""Resamplers made fast on a CPU: a few pictures at a time, and fewer, larger products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linears import pack_linear
from .native import can_take
from .native.attention import attend
from .resampler import FeedForward, PerceiverResampler, ResamplerLayer

FILMS_AT_ONCE = 4  # as pictures of a tower: more leave the cache


class FewAtOnce(nn.Module):
    """Any resampler, [N, T, S, dim] → [N, num_latents, dim]."""

    def __init__(self, resampler: nn.Module) -> None:
        super().__init__()
        self.resampler = resampler

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.resampler(few) for few in features.split(FILMS_AT_ONCE)])


class PackedPerceiver(nn.Module):
    """The features are normed once, and give all layers their keys and values in one product.

    What distinguishes the layers' norms of the features goes into the weights behind them.
    """

    def __init__(self, theirs: PerceiverResampler, kind: str) -> None:
        super().__init__()
        self.latents, self.time, self.norm = theirs.latents, theirs.time, theirs.norm
        self.project = theirs.project
        if isinstance(theirs.project, nn.Linear):
            self.project = pack_linear(theirs.project.weight, None, kind)
        plain: list[Any] = list(theirs.layers)
        self.eps = plain[0].norm_media.eps
        weights = [x.to_kv.weight.float() * x.norm_media.weight.float() for x in plain]
        biases = [x.to_kv.weight.float() @ x.norm_media.bias.float() for x in plain]
        self.to_kv = pack_linear(torch.cat(weights), torch.cat(biases), kind).spend_input()
        self.layers = nn.ModuleList(PackedLayer(layer, kind) for layer in plain)

    def forward(self, features: Tensor) -> Tensor:
        features = (self.project(features) + self.time(features.shape[1])).flatten(1, 2)
        normed = F.layer_norm(features, features.shape[-1:], eps=self.eps)
        latents = self.latents.expand(len(features), -1, -1)
        for layer, seen in zip(
            self.layers, self.to_kv(normed).chunk(len(self.layers), dim=-1), strict=True
        ):
            latents = layer(latents, seen)
        out: Tensor = self.norm(latents)
        return out


class PackedLayer(ResamplerLayer):
    """What the latents give, queries, keys and values, is one product."""

    def __init__(self, theirs: ResamplerLayer, kind: str) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.q_norm, self.k_norm = theirs.num_heads, theirs.q_norm, theirs.k_norm
        self.sizes = [theirs.to_q.out_features, theirs.to_kv.out_features]
        weight = torch.cat([theirs.to_q.weight, theirs.to_kv.weight])
        self.to_qkv = pack_linear(weight, None, kind, norm=theirs.norm_latents).spend_input()
        self.register_module("to_out", pack_linear(theirs.to_out.weight, None, kind))
        self.register_module("feed_forward", PackedFeedForward(theirs.feed_forward, kind))

    def forward(self, latents: Tensor, seen: Tensor) -> Tensor:
        """`seen` [N, T*S, 2 * inner] are keys and values of the features."""
        q, own = self.to_qkv(latents).split(self.sizes, dim=-1)
        latents = self.to_out(self.look(q, torch.cat([seen, own], dim=1)), latents)
        out: Tensor = self.feed_forward(latents, latents)
        return out

    def look(self, q: Tensor, keys_values: Tensor) -> Tensor:
        if not can_take(q):
            return super().look(q, keys_values)
        k, v = keys_values.chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))
        return attend(self.q_norm(q), self.k_norm(k), v).flatten(2)


class PackedFeedForward(nn.Module):
    """What it answers is `factor` times the plain one's, and what is to be added."""

    def __init__(self, plain: FeedForward, kind: str, factor: Tensor | float = 1.0) -> None:
        super().__init__()
        up, act = plain.up.weight, plain.activation
        self.up = pack_linear(up, None, kind, activation=act, norm=plain.norm).spend_input()
        self.down = pack_linear(plain.down.weight * factor, None, kind).spend_input()

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        out: Tensor = self.down(self.up(x), more)
        return out


def packed_resampler(resampler: nn.Module, kind: str) -> nn.Module:
    """Of the paper's kind with plain layers; any other is only given fewer films at once."""
    if isinstance(resampler, FewAtOnce):
        return resampler
    if type(resampler) is PerceiverResampler and all(is_plain(x) for x in resampler.layers):
        return FewAtOnce(PackedPerceiver(resampler, kind))
    return FewAtOnce(resampler)


def is_plain(layer: Any) -> bool:
    linears = [layer.to_q, layer.to_kv, layer.to_out, layer.feed_forward.up]
    return type(layer) is ResamplerLayer and all(type(x) is nn.Linear for x in linears)
