"""Decoding on a CPU as one call of the C kernels: what a step does is recorded once for each number
of rows, as `decode_graph` does it for a GPU.

Done from Python, each of a step's hundred small calls starts the threads anew, and no weights are
read between them. The kernels are the same here, and so are the numbers, to the last bit: where a
layer has one kernel, a token's do not depend on whether it comes in such a step or in one that has
prompts, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .cache import BlockCache, MediaSlots
from .cuda_attention import Table, alibi
from .decode_graph import DecodeRoom, DecodeRow
from .flamingo import Flamingo, before_layers
from .linears import PackedLinear
from .native import can_take
from .native.attention import PagedAttention, PagedStruct
from .native.products import ACTIVATIONS, Activation, Product
from .native.step import Step, Turns
from .packed_resampler import PackedFeedForward
from .packing import PackedCrossAttention, PackedDecoderLayer, PackedGatedFeedForward
from .positions import InterleavedRotary, Rotary


class NativeDecoding(DecodeRoom):
    """Logits of as many decoding tokens as there is room for, of a model that `is_recordable`."""

    def __init__(
        self,
        model: Flamingo,
        cache: BlockCache,
        media: MediaSlots,
        max_rows: int,
        max_blocks: int,
    ) -> None:
        super().__init__(model, media, max_rows, max_blocks)
        self.numbers = torch.zeros(5, max_rows, dtype=torch.long)
        self.blocks = torch.zeros(max_rows, max_blocks, dtype=torch.long)
        self.slots = torch.zeros(max_rows, self.max_slots, dtype=torch.long)
        positions = model.decoder.positions
        self.rotary = positions if isinstance(positions, Rotary) else None
        self.turns = make_turns(self.rotary, max_rows)
        places, lengths, seen = self.numbers[2:]
        own = Table(self.blocks, lengths, alibi(cache), cache.reach.window)
        pictures = Table(self.slots, seen)
        self.recorder = Recorder(model, cache, media, places, self.turns, own, pictures)
        self.steps = dict[int, Step | None]()

    def can_run(self, rows: Sequence[DecodeRow]) -> bool:
        return super().can_run(rows) and self.step(len(rows)) is not None

    @torch.inference_mode()
    def run(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Logits [rows, vocab]"""
        num, decoder = len(rows), self.model.decoder
        self.write(rows)
        token_ids, positions = self.numbers[:2, :num]
        hidden = self.recorder.hidden[:num].copy_(decoder.embedded(token_ids, positions))
        if self.rotary is not None and self.turns is not None:
            self.turns.write(*self.rotary.angles(positions))
        step = self.step(num)
        assert step is not None
        step(num)
        return self.model.logits(decoder.norm(hidden))

    def write(self, rows: Sequence[DecodeRow]) -> None:
        """Behind a row's own blocks stay those of a step before, which nobody reads."""
        numbers, blocks, slots = (x.numpy() for x in (self.numbers, self.blocks, self.slots))
        for index, row in enumerate(rows):
            seen = len(row.slots) * self.num_latents
            numbers[:, index] = row.token_id, row.position, row.place, row.position + 1, seen
            blocks[index, : len(row.blocks)] = row.blocks
            slots[index, : len(row.slots)] = row.slots

    def step(self, num_rows: int) -> Step | None:
        """None where torch's kernel is the faster for so many rows."""
        if num_rows not in self.steps:
            is_ours = all(is_product(x.kernel(num_rows)) for x in step_linears(self.model))
            self.steps[num_rows] = self.recorder.record(num_rows) if is_ours else None
        return self.steps[num_rows]


class Recorder:
    """Writes down what a model's layers do, to buffers [max_rows, width] that they share."""

    def __init__(
        self,
        model: Flamingo,
        cache: BlockCache,
        media: MediaSlots,
        places: Tensor,
        turns: Turns | None,
        own: Table,
        pictures: Table,
    ) -> None:
        self.model, self.cache, self.places, self.turns = model, cache, places, turns
        keys, values = (x.unflatten(1, (-1, cache.block_size)) for x in (cache.k, cache.v))
        self.own = PagedAttention(keys, values, own)
        self.pictures = PagedAttention(media.k.transpose(2, 3), media.v.transpose(2, 3), pictures)
        self.buffers = dict[tuple[str, int], Tensor]()
        self.hidden = self.buffer("hidden", model.config.decoder.dim)
        self.ops, self.num_rows = Step(), 0

    def buffer(self, name: str, width: int) -> Tensor:
        if (name, width) not in self.buffers:
            self.buffers[name, width] = torch.empty(len(self.places), width, dtype=torch.float32)
        return self.buffers[name, width]

    def record(self, num_rows: int) -> Step:
        """What is done to `hidden`, in place."""
        self.ops, self.num_rows = Step(), num_rows
        before = before_layers(self.model.config, self.cross_attention)
        for index, layer in enumerate(self.model.decoder.layers):
            before(index, self.hidden)
            self.decoder_layer(index, layer)
        return self.ops

    def cross_attention(self, index: int, hidden: Tensor) -> Tensor:
        """Of a PackedCrossAttention."""
        block: Any = self.model.cross_attention[index]
        q = self.product(block.to_q, self.hidden, "q")
        self.product(block.to_out, self.attention(self.pictures, index, q, block.num_heads))
        wide = block.feed_forward
        if isinstance(wide, PackedFeedForward):
            self.product(wide.down, self.product(wide.up, self.hidden, "wide"))
        elif wide is not None:
            self.feed_forward(wide.widen, wide.down, wide.activation, is_gated=True)
        return hidden

    def decoder_layer(self, index: int, layer: Any) -> None:
        """Of a PackedDecoderLayer."""
        qkv = self.product(layer.qkv, self.hidden, "qkv")
        self.ops.keep(qkv, self.cache.k[index], self.cache.v[index], self.places, self.turns)
        q = qkv[:, : layer.sizes[0]]
        heads = layer.sizes[0] // layer.head_dim
        self.product(layer.out, self.attention(self.own, index, q, heads))
        self.feed_forward(layer.widen, layer.down, layer.activation, layer.is_gated)

    def feed_forward(
        self, widen: PackedLinear, down: PackedLinear, activation: Activation, is_gated: bool
    ) -> None:
        wide, bent = self.product(widen, self.hidden, "wide"), self.buffer("bent", down.in_features)
        self.ops.bend(wide, bent, activation, is_gated)
        self.product(down, bent)

    def product(self, linear: PackedLinear, x: Tensor, name: str | None = None) -> Tensor:
        """Into the buffer of that name, or with none added to `hidden`."""
        kernel = linear.kernel(self.num_rows)
        assert isinstance(kernel, Product)
        out = self.hidden if name is None else self.buffer(name, linear.out_features)
        self.ops.product(kernel, x, out, more=out if name is None else None)
        return out

    def attention(self, paged: PagedAttention, layer: int, q: Tensor, heads: int) -> Tensor:
        out = self.buffer("seen", q.shape[1])
        queries, seen = (x.unflatten(1, (heads, -1)) for x in (q, out))
        struct = PagedStruct.from_buffer_copy(paged.point_to(layer, queries, seen))
        self.ops.attend(struct, paged, q, out)
        return out


def make_turns(rotary: Rotary | None, max_rows: int) -> Turns | None:
    if rotary is None:
        return None
    cos, sin = torch.zeros(2, max_rows, rotary.dim, dtype=torch.float32)
    return Turns(cos, sin, isinstance(rotary, InterleavedRotary))


def is_recordable(model: Flamingo, cache: BlockCache, media: MediaSlots) -> bool:
    """Whether layers and caches are the kernels', and nothing stands between them."""
    return (
        all(map(can_take, (cache.k, media.k, model.decoder.embed.weight)))
        and all(map(is_recordable_layer, model.decoder.layers))
        and all(map(is_recordable_block, model.cross_attention))
        and all(is_product(linear.few) for linear in step_linears(model))
    )


def is_recordable_layer(layer: nn.Module) -> bool:
    """One that low-rank updates were added to has other products."""
    return (
        type(layer) is PackedDecoderLayer
        and layer.is_joined
        and layer.activation in ACTIVATIONS
        and isinstance(layer.q_norm, nn.Identity)
        and all(type(x) is PackedLinear for x in (layer.qkv, layer.out, layer.widen, layer.down))
    )


def is_recordable_block(block: nn.Module) -> bool:
    return (
        type(block) is PackedCrossAttention
        and isinstance(block.feed_forward, PackedFeedForward | PackedGatedFeedForward | None)
        and isinstance(block.norm, nn.Identity)
        and isinstance(block.q_norm, nn.Identity)
    )


def step_linears(model: Flamingo) -> Iterator[PackedLinear]:
    """All but those of keys and values of pictures, which no step needs."""
    for module in (*model.decoder.layers, *model.cross_attention):
        for name, part in module.named_modules():
            if isinstance(part, PackedLinear) and name != "to_kv":
                yield part


def is_product(kernel: object) -> bool:
    return isinstance(kernel, Product)
