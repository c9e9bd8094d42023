"""Attention of the C kernels, float32: prompts and pictures, and decoding tokens in blocks."""

from __future__ import annotations

import ctypes
from ctypes import c_long, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import check, library

if TYPE_CHECKING:
    from ..cuda_attention import Table


class SeenStruct(ctypes.Structure):
    """`struct seen` of step.h."""

    _fields_ = [("slopes", c_void_p), ("start", c_long), ("window", c_long)]


class DenseStruct(ctypes.Structure):
    """`struct dense` of attention.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "k", "v", "out")),
        ("strides", c_long * 12),  # of q, k, v and out: batch, row, head
        *((name, c_long) for name in ("batch", "heads", "kv_heads", "head_dim", "queries", "keys")),
        ("seen", SeenStruct),
        ("table", c_void_p),
        ("block_size", c_long),
    ]


class PagedStruct(ctypes.Structure):
    """`struct paged` of step.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "k", "v", "out")),
        *((name, c_long) for name in ("q_row", "block", "key", "head")),
        *((name, c_long) for name in ("block_size", "heads", "kv_heads", "head_dim")),
        *((name, c_void_p) for name in ("tables", "lengths")),
        *((name, c_long) for name in ("rows", "width")),
        ("seen", SeenStruct),
    ]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int | None = None,
    slopes: Tensor | None = None,
    window: int | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """q [N, T, heads, D], k and v [N, S, kv_heads, D] → [N, T, heads, D].

    Every query sees all keys; or, with `start`, query i stands behind `start + i` keys and sees
    those, its own and no later ones, of a `window` the last. `slopes` [heads] are ALiBi's.

    With `blocks` [B], N is 1, k and v are [blocks, block_size, kv_heads, D], and the keys are those
    of the blocks named, up to the last query's.
    """
    assert start is not None or (slopes is None and window is None and blocks is None)
    assert q.dtype == k.dtype == v.dtype == torch.float32
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(q.shape)
    struct = DenseStruct(*(x.data_ptr() for x in (q, k, v, out)))
    struct.strides[:] = [stride for x in (q, k, v, out) for stride in x.stride()[:3]]
    struct.batch, struct.queries, struct.heads, struct.head_dim = q.shape
    struct.keys, struct.kv_heads = k.shape[1:3]
    if blocks is not None and start is not None:
        assert len(q) == 1 and blocks.is_contiguous() and blocks.dtype == torch.int64
        struct.table, struct.block_size = blocks.data_ptr(), k.shape[1]
        struct.keys = start + q.shape[1]
        assert struct.keys <= len(blocks) * struct.block_size
    struct.seen = seen(slopes, -1 if start is None else start, window)
    check(library().flamingo_attend(ctypes.addressof(struct), torch.get_num_threads()))
    return out


class PagedAttention:
    """One query a row over keys in blocks of any layer; made once a step.

    Keys and values are [layers, blocks, block_size, kv_heads, D] and stay where they are.
    """

    def __init__(self, keys: Tensor, values: Tensor, table: Table) -> None:
        assert keys.stride() == values.stride() and keys.stride(-1) == 1
        assert keys.dtype == values.dtype == torch.float32
        assert table.blocks.is_contiguous() and table.lengths.is_contiguous()
        (self.rows, width), (block_size, kv_heads, head_dim) = table.blocks.shape, keys.shape[2:]
        self.kept = keys, values, table  # the kernel has addresses
        self.layer_bytes, self.head_dim = keys.stride(0) * keys.itemsize, head_dim
        self.first = keys.data_ptr(), values.data_ptr()
        self.struct = PagedStruct(
            *(None, None, None, None),
            *(0, *keys.stride()[1:4], block_size, 0, kv_heads, head_dim),
            *(table.blocks.data_ptr(), table.lengths.data_ptr(), self.rows, width),
            seen(table.slopes, 0, table.window),
        )
        self.address, self.run = ctypes.addressof(self.struct), library().flamingo_attend_paged

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        """[rows, heads, D] → the same"""
        out = q.new_empty(q.shape)
        self.point_to(layer, q, out)
        check(self.run(self.address, torch.get_num_threads()))
        return out

    def point_to(self, layer: int, q: Tensor, out: Tensor) -> PagedStruct:
        """What the kernel takes, until it is pointed elsewhere."""
        struct, (rows, heads, head_dim) = self.struct, q.shape
        assert rows == self.rows and head_dim == self.head_dim and q.dtype == torch.float32
        assert q.stride(1) == head_dim and q.stride(2) == 1 and out.is_contiguous()
        struct.q, struct.q_row, struct.heads = q.data_ptr(), q.stride(0), heads
        struct.k, struct.v = (first + layer * self.layer_bytes for first in self.first)
        struct.out = out.data_ptr()
        return struct


def attend_paged(q: Tensor, k: Tensor, v: Tensor, table: Table) -> Tensor:
    """As `cuda_attention.gathered_attend`: each query reads its blocks where they are."""
    return PagedAttention(k.unsqueeze(0), v.unsqueeze(0), table)(0, q)


def seen(slopes: Tensor | None, start: int, window: int | None) -> SeenStruct:
    return SeenStruct(None if slopes is None else slopes.data_ptr(), start, window or 0)
