# mypy: ignore-errors
# Triton is untyped and comes with CUDA builds of torch alone; `cuda_attention` imports this lazily.
"""Attention of one token per sequence over keys in blocks: Triton kernels.

Flash decoding: each program takes one query head and one part of the keys with an online softmax in
float32; a second kernel joins the parts (Dao et al. 2023, after Milakov & Gimelshein 2018, arXiv
1805.02867, for the softmax and Kwon et al. 2023, arXiv 2309.06180, for the blocks).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["blocks_row", "blocks_at"])  # else each width compiles anew
def attend_part(
    q,  # [rows, heads, HEAD_DIM]
    k,  # [blocks, BLOCK_SIZE, kv_heads, HEAD_DIM]
    v,
    out,  # [rows, heads, PARTS, HEAD_DIM], the dims dense; float32 where there are several parts
    peaks,  # float32 [rows, heads, PARTS]: the highest score
    sums,  # the same shape: what the softmax divides by
    blocks,  # [rows, n]
    lengths,  # [rows]
    slopes,  # float32 [heads]
    scale,
    q_row,
    q_head,
    k_block,
    k_key,
    k_head,
    blocks_row,
    blocks_at,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,  # HEAD_DIM, rounded up to a power of two
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
):
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    length = tl.load(lengths + row).to(tl.int32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    size = tl.cdiv(tl.cdiv(length - first, PARTS), TILE) * TILE
    begin = first + part * size
    end = tl.minimum(begin + size, length)

    dims = tl.arange(0, DIMS)
    is_dim = dims < HEAD_DIM
    query = tl.load(q + row * q_row + head * q_head + dims, mask=is_dim, other=0.0)
    query = query.to(tl.float32) * scale
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(slopes + head)

    peak = -float("inf")
    total = 0.0
    seen = tl.zeros([DIMS], dtype=tl.float32)
    for start in range(begin, end, TILE):  # each tile has a key, so that `peak` becomes finite
        keys = start + tl.arange(0, TILE)
        is_key = keys < end
        block = tl.load(blocks + row * blocks_row + keys // BLOCK_SIZE * blocks_at, mask=is_key)
        where = block.to(tl.int64) * k_block + keys % BLOCK_SIZE * k_key + head // GROUP * k_head
        at = where[:, None] + dims[None, :]
        mask = is_key[:, None] & is_dim[None, :]
        key = tl.load(k + at, mask=mask, other=0.0).to(tl.float32)
        scores = tl.sum(key * query[None, :], axis=1) - slope * (length - 1 - keys)
        scores = tl.where(is_key, scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=0))
        weights = tl.exp(scores - higher)
        kept = tl.exp(peak - higher)
        value = tl.load(v + at, mask=mask, other=0.0).to(tl.float32)
        seen = seen * kept + tl.sum(weights[:, None] * value, axis=0)
        total = total * kept + tl.sum(weights, axis=0)
        peak = higher

    place = (row * heads + head) * PARTS + part
    if PARTS == 1:
        seen = seen / tl.where(total > 0, total, 1.0)  # a row without keys gets 0
    else:
        tl.store(peaks + place, peak)
        tl.store(sums + place, total)
    tl.store(out + place * HEAD_DIM + dims, seen.to(out.dtype.element_ty), mask=is_dim)


@triton.jit
def join_parts(
    parts,  # float32 [rows, heads, PARTS, HEAD_DIM]
    peaks,
    sums,
    out,  # [rows, heads, HEAD_DIM], dense
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    PARTS: tl.constexpr,  # a power of two
):
    place = tl.program_id(0)  # row and head
    which, dims = tl.arange(0, PARTS), tl.arange(0, DIMS)
    is_dim = dims < HEAD_DIM
    peak = tl.load(peaks + place * PARTS + which)
    highest = tl.max(peak, axis=0)
    highest = tl.where(highest > -float("inf"), highest, 0.0)  # no keys at all
    share = tl.exp(peak - highest)
    at = (place * PARTS + which)[:, None] * HEAD_DIM + dims[None, :]
    seen = tl.load(parts + at, mask=is_dim[None, :], other=0.0)
    total = tl.sum(tl.load(sums + place * PARTS + which) * share, axis=0)
    joined = tl.sum(seen * share[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out + place * HEAD_DIM + dims, joined.to(out.dtype.element_ty), mask=is_dim)
