"""Flamingo: vision tower → resampler → gated cross-attention inside a frozen decoder.

Three calls: `encode_media` (pixels → latents), `project_media` (latents → keys and values, once
per picture), `forward` (tokens → hidden states). No layer keeps any state between calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FlamingoConfig
from .cross_attention import CrossAttend, GatedCrossAttention, build_cross_attention
from .decoder import BeforeLayer, Decoder, SelfAttend
from .resampler import build_resampler
from .vision import build_vision


@dataclass(frozen=True)
class MediaKV:
    """Keys and values of some pictures for every cross-attention block.

    Each [num_blocks, ..., heads, R, head_dim].
    """

    k: Tensor
    v: Tensor


class Flamingo(nn.Module):
    """The whole network, from normalised pixels and token ids to logits."""

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = build_vision(config.vision)
        self.resampler: nn.Module = build_resampler(config.resampler, config.vision)
        self.decoder = Decoder(config.decoder)
        self.cross_attention = nn.ModuleList(
            build_cross_attention(config.decoder.dim, config.resampler.dim, config.cross_attention)
            for _ in range(config.cross_attention.num_blocks(config.decoder.num_layers))
        )

    def encode_media(self, pixels: Tensor) -> Tensor:
        """[N, T, 3, H, W] normalised pixels of N films (a picture: T=1) → [N, R, dim] latents."""
        num_media, num_frames = pixels.shape[:2]
        features = self.vision(pixels.flatten(0, 1))  # [N*T, S, dim]
        latents: Tensor = self.resampler(features.unflatten(0, (num_media, num_frames)))
        return latents

    def embed_media(self, pixels: Tensor) -> Tensor:
        """[N, T, 3, H, W] normalised pixels → [N, dim] of length 1: the frozen tower's features,
        averaged over the tokens of a frame and the frames of a film. RICES compares these.
        """
        num_media, num_frames = pixels.shape[:2]
        features = self.vision(pixels.flatten(0, 1)).float().mean(1)  # [N*T, dim]
        return F.normalize(features.unflatten(0, (num_media, num_frames)).mean(1), dim=-1)

    def project_media(self, latents: Tensor) -> MediaKV:
        """[..., R, dim] → keys and values of every block: the one projection a media ever needs."""
        keys, values = zip(*(block.project_media(latents) for block in self.blocks()), strict=True)
        return MediaKV(torch.stack(keys), torch.stack(values))

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        self_attend: SelfAttend,
        cross_attend: CrossAttend,
    ) -> Tensor:
        """Tokens [...] and positions [...] → final hidden states [..., dim]; see `logits`."""
        blocks = self.blocks()

        def look(index: int, hidden: Tensor) -> Tensor:
            out: Tensor = blocks[index](hidden, index, cross_attend)
            return out

        before = before_layers(self.config, look)
        out: Tensor = self.decoder(token_ids, positions, self_attend, before)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] → [..., vocab_size]"""
        return self.decoder.logits(hidden)

    def blocks(self) -> list[GatedCrossAttention]:
        return [b for b in self.cross_attention if isinstance(b, GatedCrossAttention)]


def before_layers(config: FlamingoConfig, look: BeforeLayer) -> BeforeLayer:
    """`look` (block, hidden) before those layers that have a cross-attention block."""
    cross = config.cross_attention

    def before_layer(layer: int, hidden: Tensor) -> Tensor:
        return look(layer // cross.interval, hidden) if cross.has_block(layer) else hidden

    return before_layer
