"""Attention through the caches, for flat batches that mix prompts and decoding tokens.

Keys of many sequences lie in blocks. What several decoding tokens share, or what lies side by side,
is read where it is, once for all of them; the rest is gathered. Any device, any model's `Reach`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import BlockCache, MediaSlots

IN_PLACE = 64  # tokens; shorter runs are gathered, for every run costs calls
FEW_QUERIES = 32  # up to here fused kernels on a CPU are slower than written out ones


@dataclass(frozen=True)
class Span:
    """Prompt tokens [begin, end) of a flat batch, of one sequence; the first stands at `start`.

    `blocks` hold its keys. For a tree of candidates `key_positions` and `mask` [n, keys] say where
    each key stands and which a token sees; otherwise keys stand in order and all before are seen.
    """

    begin: int
    end: int
    start: int
    blocks: tuple[int, ...]
    key_positions: Tensor | None = None
    mask: Tensor | None = None

    @property
    def stop(self) -> int:
        """Keys that its last token has before and at it."""
        return self.start + self.end - self.begin


@dataclass(frozen=True)
class MediaRun:
    """Prompt tokens [begin, end) of a flat batch that all see the picture in `slot`.

    `earlier` holds the slots of those before it, for a model that looks at all.
    """

    slot: int
    begin: int
    end: int
    earlier: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Flat tokens [N] of many sequences: first one token each of those decoding, then spans.

    `places` is where in the cache each token's key goes; `decodes` the blocks of each decoding
    token's sequence. `media_slots` holds the slot each decoding token sees, -1 for none; `runs` the
    same for spans. Where a model looks at all pictures so far `media_slots` is [num_decoding, M],
    filled with -1 on the left.
    """

    token_ids: Tensor
    positions: Tensor
    places: Tensor
    decodes: tuple[tuple[int, ...], ...]
    media_slots: Tensor
    spans: tuple[Span, ...]
    runs: tuple[MediaRun, ...]

    @property
    def num_decoding(self) -> int:
        return len(self.decodes)


@dataclass(frozen=True)
class Part:
    """Keys at positions [begin, end) that the decoding tokens `rows` read.

    `places` is a slice of the cache that all of them share, or [rows, end - begin] indices.
    """

    rows: list[int]
    begin: int
    end: int
    places: slice | Tensor


class CachedSelfAttention:
    """Writes the batch's keys and values into the cache, then attends to each token's own blocks.

    Without `in_place` everything is gathered, so that the numbers do not depend on where blocks
    happen to lie, nor on who else is in the batch.
    """

    def __init__(self, cache: BlockCache, batch: Batch, in_place: bool = True) -> None:
        self.cache, self.batch, self.in_place = cache, batch, in_place
        self.device = batch.positions.device
        self.span_places = [self.places_of(span.blocks, span.stop) for span in batch.spans]
        self.masks = [self.span_mask(span) for span in batch.spans]
        if batch.num_decoding:
            positions = batch.positions[: batch.num_decoding]
            self.lengths: list[int] = (positions + 1).tolist()
            self.parts = sorted(self.decode_parts(), key=lambda part: part.begin)
            num = batch.num_decoding
            self.parts_have_all_rows = all(len(part.rows) == num for part in self.parts)
            self.bias = self.decode_bias(positions)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, heads, head_dim], k and v [N, kv_heads, head_dim]"""
        self.cache.write(layer, self.batch.places, k, v)
        num = self.batch.num_decoding
        if num == len(q):
            return self.decode(layer, q)
        out = torch.empty_like(q)
        if num:
            out[:num] = self.decode(layer, q[:num])
        for span, places, mask in zip(self.batch.spans, self.span_places, self.masks, strict=True):
            keys, values = self.cache.k[layer][places], self.cache.v[layer][places]
            out[span.begin : span.end] = prefill(q[span.begin : span.end], keys, values, mask)
        return out

    # ---- prompts

    def span_mask(self, span: Span) -> Tensor | None:
        """Four dimensions, as torch's fast kernels want; None where their causal rule will do."""
        reach, num = self.cache.reach, span.end - span.begin
        if span.mask is None and reach.is_plain and span.start == 0 and num > FEW_QUERIES:
            return None
        queries = self.batch.positions[span.begin : span.end].unsqueeze(0)
        keys = span.key_positions
        keys = torch.arange(span.stop, device=self.device) if keys is None else keys
        mask = reach.mask(queries, keys, self.cache.k.dtype)  # [1, 1 or heads, n, keys]
        if span.mask is None:
            return mask
        return mask & span.mask if mask.dtype == torch.bool else mask.where(span.mask, -torch.inf)

    def places_of(self, blocks: Sequence[int], length: int) -> slice | Tensor:
        """Where the first `length` keys lie: a slice if side by side, read without a copy."""
        size = self.cache.block_size
        blocks = blocks[: -(-length // size)]
        if self.in_place and blocks[-1] - blocks[0] == len(blocks) - 1 and is_run(blocks):
            return slice(blocks[0] * size, blocks[0] * size + length)
        return self.indices(blocks)[:length]

    def indices(self, blocks: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Places of blocks [..., n] → [..., n * block_size]"""
        size = self.cache.block_size
        first = torch.tensor(blocks, device=self.device) * size
        return (first.unsqueeze(-1) + torch.arange(size, device=self.device)).flatten(-2)

    # ---- decoding

    def decode_parts(self) -> Iterator[Part]:
        """Runs of neighbouring blocks that the same tokens read; what is left, by where it begins.

        Tokens are split into groups with equal blocks from the front, as forks and requests with a
        common prefix have them.
        """
        left = dict[int, list[int]]()
        groups = [(list(range(self.batch.num_decoding)), 0)]
        while groups:
            rows, at = groups.pop()
            for same in self.alike(rows, at):
                num = self.common_run(same, at) if self.in_place else 0
                begin, end = at * self.cache.block_size, self.end_of(same, at + num)
                if end - begin >= IN_PLACE:
                    start = self.batch.decodes[same[0]][at] * self.cache.block_size
                    yield Part(same, begin, end, slice(start, start + end - begin))
                    groups.append((same, at + num))
                else:
                    left.setdefault(at, []).extend(same)
        for at, rows in left.items():
            yield self.gathered(sorted(rows), at)

    def alike(self, rows: list[int], at: int) -> list[list[int]]:
        """Groups of those that have the same block at `at`; who has none there is done."""
        found = dict[int, list[int]]()
        for row in rows:
            if at * self.cache.block_size < self.lengths[row]:
                found.setdefault(self.batch.decodes[row][at], []).append(row)
        return list(found.values())

    def common_run(self, rows: list[int], at: int) -> int:
        """How many blocks from `at` on are neighbours and the same for all of these tokens."""
        tables, num = [self.batch.decodes[row] for row in rows], 1
        first, shortest = tables[0][at], min(map(len, tables))
        while at + num < shortest and all(t[at + num] == first + num for t in tables):
            num += 1
        return num

    def end_of(self, rows: list[int], at: int) -> int:
        return min(at * self.cache.block_size, min(self.lengths[row] for row in rows))

    def gathered(self, rows: list[int], at: int) -> Part:
        """Padded with place 0: what is masked is read, too, and must be finite."""
        tables = [self.batch.decodes[row][at:] for row in rows]
        longest = max(map(len, tables))
        begin, end = at * self.cache.block_size, max(self.lengths[row] for row in rows)
        places = self.indices([(*t, *[0] * (longest - len(t))) for t in tables])
        places = places[:, : end - begin]
        lengths = torch.tensor([self.lengths[row] for row in rows], device=self.device)
        is_own = begin + torch.arange(end - begin, device=self.device) < lengths.unsqueeze(1)
        return Part(rows, begin, end, places * is_own)

    def decode_bias(self, positions: Tensor) -> Tensor | None:
        """What is added to scores [kv_heads, B, group, keys]; None if every token sees all keys."""
        reach = self.cache.reach
        if reach.is_plain and len(set(self.lengths)) == 1 and len(self.parts) == 1:
            return None
        keys = torch.arange(max(self.lengths), device=self.device)
        mask = reach.mask(positions.unsqueeze(1), keys, torch.float32)  # [B, 1 or heads, 1, keys]
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=self.device).masked_fill_(~mask, -torch.inf)
        heads = self.cache.k.shape[-2] if mask.shape[1] > 1 else 1
        return torch.unflatten(mask.squeeze(2), 1, (heads, -1)).transpose(0, 1)

    def decode(self, layer: int, q: Tensor) -> Tensor:
        """One token per sequence, [B, heads, head_dim]: one softmax over all parts' scores."""
        k, v = self.cache.k[layer], self.cache.v[layer]
        queries = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[-2], -1)).transpose(0, 1)
        scores = self.scores(queries, k).float()
        weights = (scores if self.bias is None else scores + self.bias).softmax(-1).to(v.dtype)
        return self.values(weights, v).transpose(0, 1).flatten(1, 2)

    def scores(self, queries: Tensor, k: Tensor) -> Tensor:
        """Queries [kv_heads, B, group, D] → [kv_heads, B, group, keys]"""
        if self.parts_have_all_rows:  # side by side they are all keys
            found = [part_scores(queries, k, part) for part in self.parts]
            return found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        scores = queries.new_zeros(*queries.shape[:3], max(self.lengths))
        for part in self.parts:
            some = part_scores(queries[:, part.rows], k, part)
            scores[:, part.rows, :, part.begin : part.end] = some
        return scores

    def values(self, weights: Tensor, v: Tensor) -> Tensor:
        """Weights [kv_heads, B, group, keys] → [kv_heads, B, group, D]"""
        if self.parts_have_all_rows:
            first, *others = self.parts
            out = part_values(weights[..., first.begin : first.end], v, first)
            for part in others:
                out = out + part_values(weights[..., part.begin : part.end], v, part)
            return out
        out = weights.new_zeros(*weights.shape[:3], v.shape[-1])
        for part in self.parts:
            seen = weights[:, part.rows, :, part.begin : part.end]
            out[:, part.rows] += part_values(seen, v, part)
        return out


def is_run(blocks: Sequence[int]) -> bool:
    return all(block == blocks[0] + i for i, block in enumerate(blocks))


def part_scores(q: Tensor, k: Tensor, part: Part) -> Tensor:
    """q [kv_heads, rows, group, D] against its keys → [kv_heads, rows, group, keys]"""
    keys = k[part.places]
    if keys.dim() == 3:  # [keys, kv_heads, D], the same for all rows
        shared = torch.bmm(q.flatten(1, 2), keys.permute(1, 2, 0))
        return torch.unflatten(shared, 1, q.shape[1:3])
    return (q.transpose(0, 1) @ keys.permute(0, 2, 3, 1)).transpose(0, 1)


def part_values(weights: Tensor, v: Tensor, part: Part) -> Tensor:
    """weights [kv_heads, rows, group, keys] → [kv_heads, rows, group, D]"""
    values = v[part.places]
    if values.dim() == 3:
        shared = torch.bmm(weights.flatten(1, 2), values.transpose(0, 1))
        return torch.unflatten(shared, 1, weights.shape[1:3])
    return (weights.transpose(0, 1) @ values.transpose(1, 2)).transpose(0, 1)


def prefill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[n, heads, D] against [keys, kv_heads, D] under [1, 1 or heads, n, keys]; None is causal.

    In lower precision the kernels keep scores and softmax in float32, as the written out way does.
    """
    if mask is None or len(q) > FEW_QUERIES or q.is_cuda:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        gqa = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa
        )
        return torch.transpose(out[0], 0, 1)
    heads, group = k.shape[1], q.shape[1] // k.shape[1]
    queries = (q * q.shape[-1] ** -0.5).unflatten(1, (heads, group)).permute(1, 2, 0, 3)
    scores = torch.bmm(queries.flatten(1, 2), k.permute(1, 2, 0)).float()
    scores = scores.unflatten(1, (group, len(q)))  # [kv_heads, group, n, keys]
    mask = mask.squeeze(0).unflatten(0, (heads if mask.shape[1] > 1 else 1, -1))
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).to(v.dtype)
    out = torch.bmm(weights.flatten(1, 2), v.transpose(0, 1)).unflatten(1, (group, len(q)))
    return torch.flatten(out.permute(2, 0, 1, 3), 1, 2)


class CachedCrossAttention:
    """Each token reads the slot of the one picture it sees: the cost does not grow with shots.

    Unless the model looks at all pictures so far: then a token reads the slots of all.
    """

    def __init__(self, media: MediaSlots, batch: Batch) -> None:
        self.media, self.batch = media, batch
        slots = batch.media_slots
        slots = slots.unsqueeze(1) if slots.dim() == 1 else slots  # [B, M]
        last = slots[:, -1:]
        self.seeing = last >= 0
        self.slots = slots.where(slots >= 0, last).clamp(min=0)  # what is masked is read, too
        self.one = self.only_slot()
        self.mask: Tensor | None = None
        if slots.shape[1] > 1:
            seen = (slots >= 0) | ~self.seeing
            self.mask = seen.repeat_interleave(media.k.shape[-2], dim=1)[:, None, None]

    def only_slot(self) -> int | None:
        """The one that all decoding tokens see, if so: then it is read in place."""
        slots = set(self.batch.media_slots.flatten().tolist())
        is_one = len(slots) == 1 and self.slots.shape[1] == 1
        return slot if is_one and (slot := slots.pop()) >= 0 else None

    def __call__(self, block: int, q: Tensor) -> Tensor:
        num = self.batch.num_decoding
        if num == len(q):
            return self.decode(block, q)
        out = torch.zeros_like(q)
        if num:
            out[:num] = self.decode(block, q[:num])
        for run in self.batch.runs:
            out[run.begin : run.end] = self.prefill(block, q[run.begin : run.end], run)
        return out

    def decode(self, block: int, q: Tensor) -> Tensor:
        if self.one is not None:
            return self.look(block, q, [self.one])
        k, v = (joined(c[block][self.slots]) for c in (self.media.k, self.media.v))
        scores = ((q * q.shape[-1] ** -0.5).unsqueeze(2) @ k.transpose(-1, -2)).float()
        scores = scores if self.mask is None else scores.masked_fill(~self.mask, -torch.inf)
        out = (scores.softmax(-1).to(v.dtype) @ v).squeeze(2)
        return torch.masked_fill(out, ~self.seeing.unsqueeze(-1), 0)

    def prefill(self, block: int, q: Tensor, run: MediaRun) -> Tensor:
        return self.look(block, q, [*run.earlier, run.slot])

    def look(self, block: int, q: Tensor, slots: list[int]) -> Tensor:
        """Tokens [n, heads, D] that all see the same pictures."""
        which = slice(slots[0], slots[0] + 1) if len(slots) == 1 else slots
        k, v = (joined(c[block, which].unsqueeze(0))[0] for c in (self.media.k, self.media.v))
        scores = torch.bmm((q * q.shape[-1] ** -0.5).transpose(0, 1), k.transpose(-1, -2))
        weights = scores.float().softmax(-1).to(v.dtype)  # [heads, n, M*R]
        return torch.bmm(weights, v).transpose(0, 1)


def joined(pictures: Tensor) -> Tensor:
    """[B, M, heads, R, head_dim] → [B, heads, M*R, head_dim]; a view where M is 1."""
    return pictures.transpose(1, 2).flatten(2, 3)
