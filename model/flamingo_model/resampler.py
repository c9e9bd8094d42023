"""Perceiver Resampler: a film or picture of any size → a fixed number of latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import squared_relu
from .config import ResamplerConfig
from .vision_config import VisionConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared_relu": squared_relu,
    "gelu": F.gelu,
    "relu": F.relu,
}


class FeedForward(nn.Module):
    """LayerNorm, widen, squared ReLU, narrow; no biases (paper, section A.1.1)."""

    def __init__(self, dim: int, mult: int, activation: str = "squared_relu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim * mult, bias=False)
        self.down = nn.Linear(dim * mult, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(self.norm(x))))
        return out


class ResamplerLayer(nn.Module):
    """Latents query the features **and themselves**: kv = concat([x_f, x])."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.norm_media: nn.Module = nn.LayerNorm(config.dim)
        self.norm_latents = nn.LayerNorm(config.dim)
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * inner, bias=False)
        has_norms = config.query_key_norm
        self.q_norm = nn.LayerNorm(config.head_dim) if has_norms else nn.Identity()
        self.k_norm = nn.LayerNorm(config.head_dim) if has_norms else nn.Identity()
        self.to_out = nn.Linear(inner, config.dim, bias=False)
        self.feed_forward = FeedForward(config.dim, config.ff_mult, config.activation)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        latents = latents + self.attend(self.norm_latents(latents), self.norm_media(features))
        out: Tensor = latents + self.feed_forward(latents)
        return out

    def attend(self, latents: Tensor, features: Tensor) -> Tensor:
        keys_values = self.to_kv(torch.cat([features, latents], dim=1))
        answer: Tensor = self.to_out(self.look(self.to_q(latents), keys_values))
        return answer

    def look(self, q: Tensor, keys_values: Tensor) -> Tensor:
        """[N, R, inner] at [N, len, 2 * inner] → [N, R, inner]"""
        k, v = (self.split(x) for x in keys_values.chunk(2, dim=-1))
        q, k = self.q_norm(self.split(q)), self.k_norm(k)
        # Written out: the fused kernel is many times slower for so few queries on a CPU.
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()  # sums of many small terms
        out: Tensor = scores.softmax(-1).to(v.dtype) @ v
        return out.transpose(1, 2).flatten(2)

    def split(self, x: Tensor) -> Tensor:
        heads = torch.unflatten(x, -1, (self.num_heads, -1))
        return heads.transpose(1, 2)  # [N, heads, len, head_dim]


class PerceiverResampler(nn.Module):
    """[N, T, S, dim] → [N, num_latents, dim], the pseudo-code of the paper's figure 5.

    Like every released implementation it ends in a LayerNorm, which the pseudo-code leaves out.
    """

    def __init__(self, config: ResamplerConfig, media_dim: int | None = None) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_latents, config.dim))
        self.time_embeddings = nn.Parameter(torch.randn(config.num_time_embeddings, 1, config.dim))
        self.layers = nn.ModuleList(self.make_layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.project: nn.Module = nn.Identity()
        if config.has_projection:
            self.project = nn.Linear(media_dim or config.dim, config.dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        num_media, num_frames = features.shape[:2]
        features = self.project(features) + self.time(num_frames)
        features = features.flatten(1, 2)  # [N, T*S, dim]
        out: Tensor = self.norm(self.resample(self.latents.expand(num_media, -1, -1), features))
        return out

    def make_layer(self, config: ResamplerConfig) -> nn.Module:
        return ResamplerLayer(config)

    def resample(self, latents: Tensor, features: Tensor) -> Tensor:
        for layer in self.layers:
            latents = layer(latents, features)
        return latents

    def time(self, num_frames: int) -> Tensor:
        """[T, 1, dim]; past the trained number they are interpolated linearly (paper, 3.1.1)."""
        if not len(self.time_embeddings):
            return self.time_embeddings.new_zeros(num_frames, 1, 1)
        if num_frames <= len(self.time_embeddings):
            return self.time_embeddings[:num_frames]
        stretched = F.interpolate(
            self.time_embeddings.permute(1, 2, 0), num_frames, mode="linear", align_corners=True
        )
        return stretched.permute(2, 0, 1)


class TransformerLayer(ResamplerLayer):
    """A resampler's layer where everything looks at everything, itself alone."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__(config)
        self.norm_media = nn.Identity()

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        return super().forward(latents, features[:, :0])


class TransformerResampler(PerceiverResampler):
    """Ablation (paper, table 3): features and latents pass a plain transformer together."""

    def make_layer(self, config: ResamplerConfig) -> nn.Module:
        return TransformerLayer(config)

    def resample(self, latents: Tensor, features: Tensor) -> Tensor:
        everything = super().resample(torch.cat([features, latents], dim=1), features)
        return everything[:, -latents.shape[1] :]


class MLPResampler(PerceiverResampler):
    """Ablation (paper, table 3): neighbouring features averaged, then residual feed-forwards.

    The paper does not describe its MLP; this one has a perceiver's number of parameters.
    """

    def make_layer(self, config: ResamplerConfig) -> nn.Module:
        attention = 2 * config.num_heads * config.head_dim // config.dim
        return FeedForward(config.dim, config.ff_mult + attention)

    def resample(self, latents: Tensor, features: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool1d(features.transpose(1, 2), latents.shape[1])
        latents = latents + pooled.transpose(1, 2)  # [N, num_latents, dim]
        for layer in self.layers:
            latents = latents + layer(latents)
        return latents


def build_resampler(config: ResamplerConfig, vision: VisionConfig) -> PerceiverResampler:
    """The resampler that `config.kind` names, for the tokens of this tower."""
    kinds: dict[str, type[PerceiverResampler]] = {
        "perceiver": PerceiverResampler,
        "transformer": TransformerResampler,
        "mlp": MLPResampler,
    }
    return kinds[config.kind](config, vision.dim)
