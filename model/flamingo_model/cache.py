"""Tensors that outlive a step: self-attention rows and media slots. Who owns which is not decided
here, but by the engine's scheduler and media cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import FlamingoConfig
from .flamingo import MediaKV
from .positions import reach


class SelfAttentionCache:
    """Keys and values of `num_rows` sequences, [layers, rows, kv_heads, max_length, head_dim].

    `reach` is the model's rule of what a query sees in a row.
    """

    def __init__(
        self,
        config: FlamingoConfig,
        num_rows: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        decoder = config.decoder
        shape = (decoder.num_layers, num_rows, decoder.kv_heads, max_length, decoder.head_dim)
        self.num_rows, self.max_length = num_rows, max_length
        self.reach = reach(decoder)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, layer: int, rows: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v [N, kv_heads, head_dim] of N tokens at their row and position."""
        self.k[layer, rows, :, positions] = k
        self.v[layer, rows, :, positions] = v

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Lets another sequence go on from the same prompt."""
        for cache in (self.k, self.v):
            cache[:, target, :, :length] = cache[:, source, :, :length]


class MediaSlots:
    """Cross-attention keys and values of pictures, [blocks, slots, heads, R, head_dim]."""

    def __init__(
        self,
        config: FlamingoConfig,
        num_slots: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        cross = config.cross_attention
        num_blocks = cross.num_blocks(config.decoder.num_layers)
        latents = config.resampler.num_latents
        shape = (num_blocks, num_slots, cross.num_heads, latents, cross.head_dim)
        self.num_slots = num_slots
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, slots: list[int], media: MediaKV) -> None:
        """Stores [blocks, N, heads, R, head_dim] in N slots."""
        self.k[:, slots] = media.k
        self.v[:, slots] = media.v
