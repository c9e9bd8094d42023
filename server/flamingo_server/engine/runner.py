"""A plan → tensors → one forward pass. It owns the model and the cache tensors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from flamingo_model.adapted import Rows, forward_side_by_side, logits_side_by_side
from flamingo_model.cache import BlockCache, MediaSlots
from flamingo_model.cross_attention import CrossAttend
from flamingo_model.cuda_attention import FlashSelfAttention, fastest_attend
from flamingo_model.decode_graph import DecodeGraphs, DecodeRow, is_capturable, on_host
from flamingo_model.decoder import SelfAttend
from flamingo_model.flamingo import Flamingo
from flamingo_model.native import can_take
from flamingo_model.native_attention import NativeCrossAttention, NativeSelfAttention
from flamingo_model.native_decode import NativeDecoding, is_recordable
from flamingo_model.paged_attention import (
    Batch,
    CachedCrossAttention,
    CachedSelfAttention,
    MediaRun,
    Span,
)

from .limits import EngineLimits
from .request import LoadedAdapter, Media, Sequence
from .scheduler import Chunk, Plan

ENCODE_AT_ONCE = 16  # pictures per vision batch: bounds memory


class Runner:
    """Runs encodes and steps on the device, and in the dtype, of the model's weights.

    With `limits.is_deterministic` everything runs one by one, so that no number depends on the
    company it is computed in.
    """

    def __init__(self, model: Flamingo, limits: EngineLimits) -> None:
        device, dtype = model.decoder.embed.weight.device, model.decoder.embed.weight.dtype
        self.model, self.device, self.dtype = model, device, dtype
        self.is_deterministic = limits.is_deterministic
        self.transform = model.config.vision.pixel_transform()
        self.blocks = BlockCache(model.config, limits.num_blocks, limits.block_size, device, dtype)
        self.slots = MediaSlots(model.config, limits.num_media_slots, device, dtype)
        self.is_on_gpu = device.type == "cuda" and not limits.is_deterministic
        self.decode_sizes = limits.max_running, limits.blocks_for(limits.max_length)
        self.decoding = self.make_decoding()
        self.recorded = WeakKeyDictionary[LoadedAdapter, NativeDecoding | None]()

    def make_decoding(self) -> DecodeGraphs | NativeDecoding | None:
        """Steps that only decode, prepared once, where the device and the model allow it."""
        if not self.is_on_gpu:
            return self.record(self.model)
        if not is_capturable(self.model):
            return None
        return DecodeGraphs(self.model, self.blocks, self.slots, *self.decode_sizes)

    def record(self, model: Flamingo) -> NativeDecoding | None:
        if not is_recordable(model, self.blocks, self.slots):
            return None
        return NativeDecoding(model, self.blocks, self.slots, *self.decode_sizes)

    def decoding_with(self, adapter: LoadedAdapter | None) -> DecodeGraphs | NativeDecoding | None:
        """An adapter's own is recorded where it leaves the language model's layers as they are."""
        if adapter is None:
            return self.decoding
        if adapter not in self.recorded:
            self.recorded[adapter] = self.record(adapter.adapted.model)
        return self.recorded[adapter]

    # ---- pictures

    @torch.inference_mode()
    def encode(self, media: list[Media]) -> list[Tensor]:
        """The latents [R, dim] of each, those of equally many frames and one adapter together."""
        return self.in_chunks(media, self.encode_chunk)

    def in_chunks(
        self, media: list[Media], compute: Callable[[list[Media]], Tensor]
    ) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        at_once = 1 if self.is_deterministic else ENCODE_AT_ONCE
        for num_frames, adapter in dict.fromkeys((len(m.pixels), m.adapter) for m in media):
            alike = [m for m in media if len(m.pixels) == num_frames and m.adapter is adapter]
            for start in range(0, len(alike), at_once):
                chunk = alike[start : start + at_once]
                for one, computed in zip(chunk, compute(chunk), strict=True):
                    found[one.digest] = computed.clone()  # a view would keep its whole chunk
        return [found[m.digest] for m in media]

    def encode_chunk(self, media: list[Media]) -> Tensor:
        return self.model_of(media[0].adapter).encode_media(self.pixels(media))

    def pixels(self, media: list[Media]) -> Tensor:
        pixels = self.transform.normalise(np.stack([m.pixels for m in media]))
        return torch.from_numpy(pixels).to(self.device, self.dtype)

    @torch.inference_mode()
    def embed(self, media: list[Media]) -> list[Tensor]:
        """The pooled features [dim] of each, float32 on the CPU; batched as in `encode`."""
        return self.in_chunks(media, lambda chunk: self.model.embed_media(self.pixels(chunk)).cpu())

    def to_device(self, latents: Tensor) -> Tensor:
        return latents.to(self.device, self.dtype)

    @torch.inference_mode()
    def fill_slots(
        self, slots: list[int], latents: list[Tensor], adapter: LoadedAdapter | None = None
    ) -> None:
        """Projects keys and values once, for every step and request that follows."""
        model = self.model_of(adapter)
        at_once = 1 if self.is_deterministic else len(slots)
        for start in range(0, len(slots), at_once):
            some = torch.stack(latents[start : start + at_once])
            for index, block in enumerate(model.blocks()):  # never the numbers of all at once
                keys_values = block.project_media(some)
                self.slots.write(index, slots[start : start + at_once], *keys_values)

    def model_of(self, adapter: LoadedAdapter | None) -> Flamingo:
        return self.model if adapter is None else adapter.adapted.model

    # ---- steps

    @torch.inference_mode()
    def step(self, plan: Plan) -> Tensor:
        """Logits [wanted tokens, vocab], by `plan.in_order()`, on the CPU."""
        for chunk in plan.chunks:
            for source, target in chunk.copies:
                self.blocks.copy_block(source, target)
        if self.is_deterministic:
            found = {id(chunk): self.forward([chunk]) for chunk in plan.chunks}
            return torch.cat([found[id(chunk)] for chunk in plan.in_order()])
        return self.forward(plan.in_order())

    def forward(self, chunks: list[Chunk]) -> Tensor:
        adapters = {chunk.sequence.request.adapter for chunk in chunks}
        if len(adapters) > 1:
            return self.forward_side_by_side(chunks)
        [adapter] = adapters
        decoding = self.decoding_with(adapter) if all(c.is_decode for c in chunks) else None
        if decoding is not None:
            rows = [self.decode_row(chunk) for chunk in chunks]
            if decoding.can_run(rows):
                logits, places = decoding.run(rows), wanted(chunks)
                return on_host(logits if len(places) == len(rows) else logits[places])
        batch, model = self.prepare(chunks), self.model_of(adapter)
        hidden = model(
            batch.token_ids,
            batch.positions,
            self.self_attention(batch),
            self.cross_attention(batch),
        )
        return on_host(model.logits(hidden[wanted(chunks)]))

    def forward_side_by_side(self, chunks: list[Chunk]) -> Tensor:
        """Requests of several adapters: the language model's layers run once, for all of them."""
        batch, groups = self.prepare(chunks), list[Rows]()
        for adapter, places in by_adapter(chunks).items():
            theirs = [c for c in chunks if c.sequence.request.adapter is adapter]
            attend = self.cross_attention(self.prepare(theirs))
            groups.append(Rows(adapter.adapted if adapter else None, self.tensor(places), attend))
        hidden = forward_side_by_side(
            self.model, groups, batch.token_ids, batch.positions, self.self_attention(batch)
        )
        models = [self.model_of(c.sequence.request.adapter) for c in chunks for _ in c.wanted]
        return on_host(logits_side_by_side(self.model, models, hidden[wanted(chunks)]))

    def self_attention(self, batch: Batch) -> SelfAttend:
        if self.is_on_gpu:
            return FlashSelfAttention(self.blocks, batch, fastest_attend(self.device))
        kind = NativeSelfAttention if can_take(self.blocks.k) else CachedSelfAttention
        return kind(self.blocks, batch, in_place=not self.is_deterministic)

    def cross_attention(self, batch: Batch) -> CrossAttend:
        kind = NativeCrossAttention if can_take(self.slots.k) else CachedCrossAttention
        return kind(self.slots, batch)

    def decode_row(self, chunk: Chunk) -> DecodeRow:
        sequence, at = chunk.sequence, chunk.begin
        slots = seen_slots(sequence, at)
        return DecodeRow(sequence.tokens[at], at, self.place(sequence, at), sequence.blocks, slots)

    def prepare(self, chunks: list[Chunk]) -> Batch:
        """The flat batch: decodes stand first."""
        spans, runs, offset = list[Span](), list[MediaRun](), 0
        for chunk in chunks:
            if not chunk.is_decode:
                spans.append(self.span(chunk, offset))
                runs += media_runs(chunk, offset)
            offset += chunk.end - chunk.begin
        decodes = [chunk for chunk in chunks if chunk.is_decode]
        tokens = [(c.sequence, place) for c in chunks for place in range(c.begin, c.end)]
        return Batch(
            token_ids=self.tensor([s.tokens[place] for s, place in tokens]),
            positions=self.tensor([s.position(place) for s, place in tokens]),
            places=self.tensor([self.place(s, place) for s, place in tokens]),
            decodes=tuple(tuple(chunk.sequence.blocks) for chunk in decodes),
            media_slots=self.media_slots(decodes),
            spans=tuple(spans),
            runs=tuple(runs),
        )

    def place(self, sequence: Sequence, place: int) -> int:
        size = self.blocks.block_size
        return sequence.blocks[place // size] * size + place % size

    def span(self, chunk: Chunk, offset: int) -> Span:
        sequence, end = chunk.sequence, offset + chunk.end - chunk.begin
        blocks = tuple(sequence.blocks)
        if not chunk.has_tree:
            return Span(offset, end, chunk.begin, blocks)
        keys = self.tensor([sequence.position(place) for place in range(chunk.end)])
        return Span(offset, end, chunk.begin, blocks, keys, tree_mask(chunk).to(self.device))

    def media_slots(self, decodes: list[Chunk]) -> Tensor:
        """What each decode sees: one slot [B], or all so far [B, M] with -1 on the left."""
        seen = [seen_slots(chunk.sequence, chunk.begin) for chunk in decodes]
        width = max([1, *map(len, seen)])
        flat = [slot for slots in seen for slot in [-1] * (width - len(slots)) + slots]
        slots = self.tensor(flat).view(-1, width)
        return slots.squeeze(1) if width == 1 else slots

    def tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def wanted(chunks: list[Chunk]) -> list[int]:
    """The tokens of a flat batch whose logits are wanted."""
    found, offset = list[int](), 0
    for chunk in chunks:
        found += [offset + place - chunk.begin for place in chunk.wanted]
        offset += chunk.end - chunk.begin
    return found


def by_adapter(chunks: list[Chunk]) -> dict[LoadedAdapter | None, list[int]]:
    """Which tokens of a flat batch are whose."""
    found, offset = dict[LoadedAdapter | None, list[int]](), 0
    for chunk in chunks:
        num = chunk.end - chunk.begin
        found.setdefault(chunk.sequence.request.adapter, []).extend(range(offset, offset + num))
        offset += num
    return found


def seen_slots(sequence: Sequence, place: int) -> list[int]:
    """The slots of the media that a token looks at, the last one last."""
    request = sequence.request
    return [request.slots[i] for i in request.visible(request.prompt.media_at(place))]


def media_runs(chunk: Chunk, offset: int) -> list[MediaRun]:
    """Neighbouring tokens that see the same media, as runs of the flat batch."""
    found, prompt = list[MediaRun](), chunk.sequence.request.prompt
    for _, same in groupby(range(chunk.begin, chunk.end), key=prompt.media_at):
        places = list(same)
        if slots := seen_slots(chunk.sequence, places[0]):
            begin = offset + places[0] - chunk.begin
            found.append(MediaRun(slots[-1], begin, begin + len(places), tuple(slots[:-1])))
    return found


def tree_mask(chunk: Chunk) -> Tensor:
    """[n, keys] which of the keys so far each token follows: the prompt, and its own path."""
    sequence, num_prompt = chunk.sequence, chunk.sequence.num_prompt
    assert sequence.tree is not None
    mask = torch.zeros(chunk.end - chunk.begin, chunk.end, dtype=torch.bool)
    for row, place in enumerate(range(chunk.begin, chunk.end)):
        mask[row, : min(place + 1, num_prompt)] = True
        if place >= num_prompt:
            path = sequence.tree.path(place - num_prompt)
            mask[row, [num_prompt + node for node in path]] = True
    return mask
