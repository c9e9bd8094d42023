"""Attention through the caches as a GPU wants it: blocks are read where they are, by block tables.

All shapes are known without a look at the numbers, so that a step may be captured as a CUDA graph
(`decode_graph`). The kernels are checked in Triton's interpreter, and compile for A100 and H100;
they have never yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from .cache import BlockCache
from .paged_attention import Batch, CachedSelfAttention

PROGRAMS = 512  # about as many keep a large GPU busy
PART_KEYS = 128  # fewer are not worth a part of their own
TILE_NUMBERS = 4096  # of keys, held in registers at once


@dataclass(frozen=True)
class Table:
    """Which keys the queries [B, heads, head_dim] see: the first `lengths` [B] in `blocks` [B, n].

    The query is the last of them. A length of 0 sees nothing and gets 0. `slopes` [heads] are
    ALiBi's; `window` counts the last keys that are seen.
    """

    blocks: Tensor
    lengths: Tensor
    slopes: Tensor | None = None
    window: int | None = None


Attend = Callable[[Tensor, Tensor, Tensor, Table], Tensor]
"""(q [B, heads, D], k and v [blocks, block_size, kv_heads, D], table) → [B, heads, D]"""


def fastest_attend(device: torch.device) -> Attend:
    """CUDA builds of torch for Linux bring Triton; others do not."""
    has_kernels = device.type == "cuda" and find_spec("triton") is not None
    return flash_attend if has_kernels else gathered_attend


def gathered_attend(q: Tensor, k: Tensor, v: Tensor, table: Table) -> Tensor:
    """Plain torch, on any device: all blocks of the table are gathered, whatever the lengths."""
    keys, values = (x[table.blocks].flatten(1, 2) for x in (k, v))  # [B, keys, kv_heads, D]
    places = torch.arange(keys.shape[1], device=q.device)
    distance = table.lengths.unsqueeze(1) - 1 - places  # [B, keys]
    seen = distance >= 0
    seen = seen if table.window is None else seen & (distance < table.window)
    group = q.shape[1] // k.shape[2]
    queries = (q * q.shape[-1] ** -0.5).unflatten(1, (-1, group))  # [B, kv_heads, group, D]
    scores = (queries @ keys.permute(0, 2, 3, 1)).float()  # [B, kv_heads, group, keys]
    if table.slopes is not None:
        scores = scores - table.slopes.view(-1, group, 1) * distance[:, None, None]
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    weights = scores.softmax(-1).masked_fill(~seen[:, None, None], 0).to(v.dtype)
    values = values.masked_fill(~seen[..., None, None], 0)  # what others left there may be NaN
    return torch.flatten(weights @ values.transpose(1, 2), 1, 2)


def flash_attend(q: Tensor, k: Tensor, v: Tensor, table: Table) -> Tensor:
    """The same with Triton: keys are read once and in place, and no more of them than there are."""
    from .attention_kernels import attend_part, join_parts

    (rows, heads, head_dim), (_, block_size, kv_heads, _) = q.shape, k.shape
    assert k.stride() == v.stride() and q.stride(-1) == k.stride(-1) == 1
    dims = 1 << (head_dim - 1).bit_length()
    parts = num_parts(rows * heads, table.blocks.shape[1] * block_size)
    out = q.new_empty(rows, heads, head_dim)
    halfway = out if parts == 1 else q.new_empty(rows, heads, parts, head_dim, dtype=torch.float32)
    peaks, sums = q.new_empty(2, rows, heads, parts, dtype=torch.float32)
    with torch.cuda.device_of(q):  # Triton launches on the current one
        attend_part[(rows, heads, parts)](
            q,
            k,
            v,
            halfway,
            peaks,
            sums,
            table.blocks,
            table.lengths.contiguous(),
            q if table.slopes is None else table.slopes,
            head_dim**-0.5,
            *q.stride()[:2],
            *k.stride()[:3],
            *table.blocks.stride(),
            GROUP=heads // kv_heads,
            BLOCK_SIZE=block_size,
            HEAD_DIM=head_dim,
            DIMS=dims,
            TILE=max(16, TILE_NUMBERS // dims),
            PARTS=parts,
            HAS_SLOPES=table.slopes is not None,
            WINDOW=table.window or 0,
        )
        if parts > 1:
            join_parts[(rows * heads,)](
                halfway, peaks, sums, out, HEAD_DIM=head_dim, DIMS=dims, PARTS=parts
            )
    return out


def num_parts(num_queries: int, num_keys: int) -> int:
    """Into how many the keys are split, a power of two: one sequence alone has too few heads."""
    parts = 1
    while 2 * parts * num_queries <= PROGRAMS and 2 * parts * PART_KEYS <= num_keys:
        parts *= 2
    return parts


class FlashSelfAttention:
    """`CachedSelfAttention` whose decoding tokens read their blocks through a table.

    Prompts are bound by arithmetic, not by memory: they run as there, on gathered keys.
    """

    def __init__(self, cache: BlockCache, batch: Batch, attend: Attend = flash_attend) -> None:
        self.cache, self.attend, self.num = cache, attend, batch.num_decoding
        self.spans = CachedSelfAttention(cache, replace(batch, decodes=()))
        if self.num:
            lengths = batch.positions[: self.num] + 1
            blocks, slopes = padded(batch.decodes, lengths.device), alibi(cache)
            self.table = Table(blocks, lengths, slopes, cache.reach.window)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, heads, head_dim], k and v [N, kv_heads, head_dim]"""
        out: Tensor = self.spans(layer, q, k, v)  # writes the keys of all tokens
        if self.num:
            out[: self.num] = self.attend(q[: self.num], *self.cache.in_blocks(layer), self.table)
        return out


def alibi(cache: BlockCache) -> Tensor | None:
    """The model's slopes, float32 [heads], if it has any."""
    slopes = cache.reach.slopes
    return torch.tensor(slopes, device=cache.k.device) if slopes else None


def padded(blocks: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[B, n], filled up with block 0"""
    longest = max(map(len, blocks))
    return torch.tensor([[*b, *[0] * (longest - len(b))] for b in blocks], device=device)
