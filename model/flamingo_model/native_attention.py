"""Attention through the caches by the C kernels: float32 on a CPU that has them.

The same as `paged_attention`, which is the reference and runs anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .cache import BlockCache, MediaSlots
from .cuda_attention import Table, alibi, padded
from .native.attention import PagedAttention, attend
from .paged_attention import Batch, CachedSelfAttention, joined


class NativeSelfAttention:
    """`CachedSelfAttention`; only a tree of candidates, which has a mask, is still computed there.

    No token's numbers depend on who else is in the batch, nor on where blocks lie; those of trees,
    too, without `in_place`. A prompt's token that comes alone is taken as a decoding one: its sums
    have another order than in a chunk.
    """

    def __init__(self, cache: BlockCache, batch: Batch, in_place: bool = True) -> None:
        self.cache, self.num, self.places = cache, batch.num_decoding, batch.places
        trees = tuple(span for span in batch.spans if span.mask is not None)
        theirs = replace(batch, decodes=(), spans=trees)
        self.trees = CachedSelfAttention(cache, theirs, in_place) if trees else None
        self.spans = [
            (span, torch.tensor(span.blocks, dtype=torch.long))
            for span in batch.spans
            if span.mask is None
        ]
        self.slopes, self.window = alibi(cache), cache.reach.window
        self.keys, self.values = (
            x.unflatten(1, (-1, cache.block_size)) for x in (cache.k, cache.v)
        )
        if self.num:
            lengths = batch.positions[: self.num] + 1
            blocks = padded(batch.decodes, lengths.device)
            table = Table(blocks, lengths, self.slopes, self.window)
            self.paged = PagedAttention(self.keys, self.values, table)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, heads, head_dim], k and v [N, kv_heads, head_dim]"""
        if self.trees is not None:
            out: Tensor = self.trees(layer, q, k, v)  # writes the keys of all tokens
        else:
            self.cache.write(layer, self.places, k, v)
            if self.num == len(q):
                return self.paged(layer, q)
            out = torch.empty_like(q)
        if self.num:
            out[: self.num] = self.paged(layer, q[: self.num])
        keys, values = self.keys[layer], self.values[layer]
        for span, blocks in self.spans:
            queries = q[span.begin : span.end].unsqueeze(0)
            seen = attend(queries, keys, values, span.start, self.slopes, self.window, blocks)
            out[span.begin : span.end] = seen[0]
        return out


class NativeCrossAttention:
    """`CachedCrossAttention`: a slot is a block of as many keys as a picture has latents."""

    def __init__(self, media: MediaSlots, batch: Batch) -> None:
        self.media, self.runs, self.num = media, batch.runs, batch.num_decoding
        if self.num:
            slots = batch.media_slots.view(self.num, -1).tolist()
            seen = [[slot for slot in row if slot >= 0] for row in slots]
            lengths = torch.tensor([len(row) * media.k.shape[-2] for row in seen])
            table = Table(padded([row or [0] for row in seen], lengths.device), lengths)
            self.paged = PagedAttention(media.k.transpose(2, 3), media.v.transpose(2, 3), table)

    def __call__(self, block: int, q: Tensor) -> Tensor:
        """q [N, heads, head_dim]"""
        if self.num == len(q):
            return self.paged(block, q)
        out = torch.zeros_like(q)
        if self.num:
            out[: self.num] = self.paged(block, q[: self.num])
        for run in self.runs:
            slots = [*run.earlier, run.slot]
            which = slice(slots[0], slots[0] + 1) if len(slots) == 1 else slots
            keys, values = (
                joined(x[block, which].unsqueeze(0)) for x in (self.media.k, self.media.v)
            )
            queries = q[run.begin : run.end].unsqueeze(0)
            seen = attend(queries, keys.transpose(1, 2), values.transpose(1, 2))
            out[run.begin : run.end] = seen[0]
        return out
