"""The two ways through the network: whole padded rows at once, and steps through the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from flamingo_model.attention import DenseCrossAttention, DenseSelfAttention
from flamingo_model.cache import BlockCache, MediaSlots
from flamingo_model.cross_attention import CrossAttend, media_mask, visible_media
from flamingo_model.decode_graph import DecodeRow
from flamingo_model.flamingo import Flamingo, MediaKV
from flamingo_model.paged_attention import (
    Batch,
    CachedCrossAttention,
    CachedSelfAttention,
    MediaRun,
    Span,
)
from flamingo_model.positions import reach

IMAGE = 2
"""The id of `<image>` in the tiny tokenizer."""
DOCUMENTS = ([10, 11, 12, 13, 14], [20, IMAGE, 21, 22], [IMAGE, 30, IMAGE, IMAGE, 31, 32], [7, 8])


def pictures(num: int, seed: int = 0, num_frames: int = 1) -> Tensor:
    """Noise for the tiny tower, [num, T, 3, 16, 16]."""
    return torch.randn(num, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def look(
    model: Flamingo, ids: Sequence[int], latents: Tensor, image: int = IMAGE
) -> DenseCrossAttention:
    """Cross-attention of one document whose pictures are `latents` [M, R, dim]."""
    index = torch.tensor([visible_media(ids, image)])
    sees_all = model.config.cross_attention.sees_all_media
    return DenseCrossAttention(
        model.project_media(latents.unsqueeze(0)), media_mask(index, len(latents), sees_all)
    )


def run(model: Flamingo, ids: Sequence[int], cross_attend: CrossAttend) -> Tensor:
    """Logits [T, vocab] of one document, without a cache."""
    tokens = torch.tensor([ids])
    positions = torch.arange(len(ids)).unsqueeze(0)
    attend = DenseSelfAttention(1, len(ids), reach(model.config.decoder))
    hidden = model(tokens, positions, attend, cross_attend)
    return model.logits(hidden)[0]


def bare(model: Flamingo, ids: Sequence[int]) -> Tensor:
    """The decoder alone."""
    tokens, positions = torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0)
    attend = DenseSelfAttention(1, len(ids), reach(model.config.decoder))
    return model.logits(model.decoder(tokens, positions, attend))[0]


def dense(model: Flamingo, ids: Sequence[int], pixels: Tensor, image: int = IMAGE) -> Tensor:
    """Logits [T, vocab] of one document and its pictures [M, T, 3, H, W], without a cache."""
    latents = model.encode_media(pixels)
    return run(model, ids, look(model, ids, latents, image))


@dataclass(frozen=True)
class Layout:
    """Which blocks the sequence in a row has: neighbours, or all over the cache."""

    num_rows: int
    length: int
    block_size: int = 4
    is_scattered: bool = False

    @property
    def num_blocks(self) -> int:
        return self.num_rows * self.row_blocks

    @property
    def row_blocks(self) -> int:
        return -(-self.length // self.block_size)

    def blocks(self, row: int) -> tuple[int, ...]:
        if self.is_scattered:  # backwards, and those of all rows by turns
            return tuple(self.num_blocks - row - i * self.num_rows for i in range(self.row_blocks))
        return tuple(range(1 + row * self.row_blocks, 1 + (row + 1) * self.row_blocks))

    def place(self, row: int, position: int) -> int:
        block = self.blocks(row)[position // self.block_size]
        return block * self.block_size + position % self.block_size


@dataclass(frozen=True)
class Chunk:
    """Some tokens of one sequence: the first at position `start`, each with the slot it sees.

    A token of a model that looks at all pictures sees every slot from `first_slot` on.
    """

    row: int
    ids: Sequence[int]
    slots: Sequence[int]
    start: int = 0
    first_slot: int | None = None

    def cut(self, begin: int, end: int | None = None) -> Chunk:
        ids, slots = self.ids[begin:end], self.slots[begin:end]
        return replace(self, ids=ids, slots=slots, start=self.start + begin)

    def earlier(self, slot: int) -> list[int]:
        return [] if self.first_slot is None else list(range(self.first_slot, slot))

    def runs(self, offset: int) -> list[MediaRun]:
        """Neighbouring tokens that see the same picture."""
        found = []
        for slot, same in groupby(self.slots):
            begin, offset = offset, offset + len(list(same))
            found.append(MediaRun(slot, begin, offset, tuple(self.earlier(slot))))
        return [run for run in found if run.slot >= 0]

    def span(self, offset: int, layout: Layout) -> Span:
        return Span(offset, offset + len(self.ids), self.start, layout.blocks(self.row))


def document(
    ids: Sequence[int], row: int = 0, first_slot: int = 0, sees_all: bool = False
) -> Chunk:
    """A whole document, its pictures in neighbouring slots."""
    index = visible_media(ids, IMAGE)
    slots = [first_slot + i if i >= 0 else -1 for i in index]
    return Chunk(row, ids, slots, first_slot=first_slot if sees_all else None)


class Cached:
    """A model with its caches, stepped as the engine's runner does."""

    def __init__(
        self,
        model: Flamingo,
        num_rows: int = 4,
        num_slots: int = 8,
        length: int = 48,
        is_scattered: bool = False,
        in_place: bool = True,
    ) -> None:
        self.model, self.in_place = model, in_place
        self.layout = Layout(num_rows, length, is_scattered=is_scattered)
        dtype = model.decoder.embed.weight.dtype
        sizes = self.layout.num_blocks, self.layout.block_size
        self.blocks = BlockCache(model.config, *sizes, dtype=dtype)
        self.media = MediaSlots(model.config, num_slots, dtype=dtype)

    def show(self, slots: list[int], pixels: Tensor) -> None:
        self.keep(slots, self.model.project_media(self.model.encode_media(pixels)))

    def keep(self, slots: list[int], media: MediaKV) -> None:
        for block, (k, v) in enumerate(zip(media.k, media.v, strict=True)):
            self.media.write(block, slots, k, v)

    def step(self, *prefills: Chunk, decodes: Sequence[Chunk] = ()) -> list[Tensor]:
        """Logits [tokens, vocab] of each decoding chunk (one token), then of each prefilling."""
        chunks = [*decodes, *prefills]
        batch = flat_batch(decodes, prefills, self.layout)
        hidden = self.model(
            batch.token_ids,
            batch.positions,
            CachedSelfAttention(self.blocks, batch, self.in_place),
            CachedCrossAttention(self.media, batch),
        )
        return list(self.model.logits(hidden).split([len(c.ids) for c in chunks]))


def half_decoded(model: Flamingo) -> tuple[Cached, list[Chunk]]:
    """Documents whose last tokens are still to be decoded, in blocks all over the cache."""
    cached = Cached(model, num_rows=len(DOCUMENTS), length=12, is_scattered=True)
    cached.show(list(range(8)), pictures(8))
    sees_all = model.config.cross_attention.sees_all_media
    chunks = [document(ids, row, row, sees_all) for row, ids in enumerate(DOCUMENTS)]
    cached.step(*(chunk.cut(0, -1) for chunk in chunks))
    return cached, [chunk.cut(len(chunk.ids) - 1) for chunk in chunks]


def row_of(chunk: Chunk, cached: Cached) -> DecodeRow:
    slots = [*chunk.earlier(chunk.slots[0]), chunk.slots[0]] if chunk.slots[0] >= 0 else []
    place = cached.layout.place(chunk.row, chunk.start)
    blocks = cached.layout.blocks(chunk.row)
    return DecodeRow(chunk.ids[0], chunk.start, place, blocks, slots)


def flat_batch(decodes: Sequence[Chunk], prefills: Sequence[Chunk], layout: Layout) -> Batch:
    chunks, offset = [*decodes, *prefills], len(decodes)
    spans, runs = [], []
    for chunk in prefills:
        spans.append(chunk.span(offset, layout))
        runs += chunk.runs(offset)
        offset += len(chunk.ids)
    return Batch(
        token_ids=torch.tensor([i for c in chunks for i in c.ids]),
        positions=torch.tensor([c.start + i for c in chunks for i in range(len(c.ids))]),
        places=torch.tensor(
            [layout.place(c.row, c.start + i) for c in chunks for i in range(len(c.ids))]
        ),
        decodes=tuple(layout.blocks(c.row) for c in decodes),
        media_slots=decode_slots(decodes),
        spans=tuple(spans),
        runs=tuple(runs),
    )


def decode_slots(decodes: Sequence[Chunk]) -> Tensor:
    """[B], or [B, M] with -1 on the left where a token sees many pictures."""
    seen = [[*c.earlier(c.slots[0]), c.slots[0]] for c in decodes]
    width = max(map(len, seen), default=1)
    padded = [[-1] * (width - len(slots)) + slots for slots in seen]
    slots = torch.tensor(padded, dtype=torch.long).view(len(decodes), width)
    return slots if width > 1 else slots.squeeze(1)
