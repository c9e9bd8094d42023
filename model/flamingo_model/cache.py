"""Tensors that outlive a step: self-attention blocks and media slots. Who owns which is not decided
here, but by the engine's scheduler and media cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import FlamingoConfig
from .memory import small_pages
from .positions import reach


def zeros(shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """On a CPU memory that is taken where something is first written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return small_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


class BlockCache:
    """Keys and values of all sequences, [layers, places, kv_heads, head_dim].

    Block b is places b * block_size and on; block 0 stays zero, for padding, and behind the last
    one is place `scratch`, which may be written to and is never read. `reach` is the model's rule
    of what a query sees.
    """

    def __init__(
        self,
        config: FlamingoConfig,
        num_blocks: int,
        block_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        decoder = config.decoder
        self.scratch = (num_blocks + 1) * block_size
        shape = (decoder.num_layers, self.scratch + block_size, decoder.kv_heads, decoder.head_dim)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.reach = reach(decoder)
        self.k = zeros(shape, device, dtype)
        self.v = zeros(shape, device, dtype)

    @staticmethod
    def bytes_per_token(config: FlamingoConfig, dtype: torch.dtype) -> int:
        decoder = config.decoder
        return 2 * decoder.num_layers * decoder.kv_heads * decoder.head_dim * dtype.itemsize

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v [N, kv_heads, head_dim] of N tokens at their places."""
        self.k[layer].index_copy_(0, places, k)
        self.v[layer].index_copy_(0, places, v)

    def in_blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of a layer's keys and values, [blocks, block_size, kv_heads, head_dim]."""
        k, v = (x[layer].unflatten(0, (-1, self.block_size)) for x in (self.k, self.v))
        return k, v

    def copy_block(self, source: int, target: int) -> None:
        begin, end = source * self.block_size, target * self.block_size
        for cache in (self.k, self.v):
            cache[:, end : end + self.block_size] = cache[:, begin : begin + self.block_size]


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
        self.k = zeros(shape, device, dtype)
        self.v = zeros(shape, device, dtype)

    def write(self, block: int, slots: list[int], k: Tensor, v: Tensor) -> None:
        """Stores a block's keys and values [N, heads, R, head_dim] in N slots."""
        for row, slot in enumerate(slots):  # each is written as a whole
            self.k[block, slot] = k[row]
            self.v[block, slot] = v[row]

    def in_blocks(self, block: int) -> tuple[Tensor, Tensor]:
        """The same views of a cross-attention block: a slot is a block of R keys."""
        return self.k[block].transpose(1, 2), self.v[block].transpose(1, 2)
