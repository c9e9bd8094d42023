"""Decoding at fixed shapes and addresses, so that a step of a GPU is one CUDA graph.

Launching the kernels of a step one by one takes a CPU longer than a GPU needs for them. A graph is
captured per number of rows; fewer are padded. On a CPU the same code runs uncaptured, which is how
it is tested: capture and replay themselves have never yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cache import BlockCache, MediaSlots
from .cuda_attention import Attend, Table, alibi, fastest_attend
from .flamingo import Flamingo

WARM_UPS = 2  # before a capture: kernels are compiled and libraries take their memory


@dataclass(frozen=True)
class DecodeRow:
    """The last token of a sequence: its key goes to `place`, and `blocks` hold those before it.

    `slots` are the media that it sees.
    """

    token_id: int
    position: int
    place: int
    blocks: Sequence[int]
    slots: Sequence[int]


class DecodeRoom:
    """For up to `max_rows` decoding tokens, of at most `max_blocks` and `max_slots` each."""

    def __init__(self, model: Flamingo, media: MediaSlots, max_rows: int, max_blocks: int) -> None:
        self.model, self.max_rows, self.max_blocks = model, max_rows, max_blocks
        self.max_slots = media.num_slots if model.config.cross_attention.sees_all_media else 1
        self.num_latents = model.config.resampler.num_latents

    def can_run(self, rows: Sequence[DecodeRow]) -> bool:
        return len(rows) <= self.max_rows and all(
            len(row.blocks) <= self.max_blocks and len(row.slots) <= self.max_slots for row in rows
        )


class DecodeGraphs(DecodeRoom):
    """Logits of as many decoding tokens as there is room for.

    Padding sees neither keys nor media and writes to the cache's scratch block. All inputs are
    columns of one array of whole numbers, and so are copied in one go.
    """

    def __init__(
        self,
        model: Flamingo,
        cache: BlockCache,
        media: MediaSlots,
        max_rows: int,
        max_blocks: int,
        attend: Attend | None = None,
    ) -> None:
        super().__init__(model, media, max_rows, max_blocks)
        self.cache, self.media = cache, media
        self.device = cache.k.device
        self.attend = attend or fastest_attend(self.device)
        self.slopes = alibi(cache)  # a capture may not copy it to the device
        self.inputs = self.pack([]).to(self.device)
        pool: Any = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        sizes = reversed(graph_sizes(max_rows))  # the largest first: the others fit its memory
        self.graphs = {n: captured(partial(self.forward, n), self.device, pool) for n in sizes}

    @torch.inference_mode()
    def run(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Logits [rows, vocab], good until the next run."""
        self.inputs.copy_(self.pack(rows), non_blocking=True)
        size = min(size for size in self.graphs if size >= len(rows))
        return self.graphs[size]()[: len(rows)]

    def pack(self, rows: Sequence[DecodeRow]) -> Tensor:
        """[5 + max_blocks + max_slots, max_rows]; a new one, for the last may be on its way yet."""
        height = 5 + self.max_blocks + self.max_slots
        is_pinned = self.device.type == "cuda"
        packed = torch.zeros(height, self.max_rows, dtype=torch.long, pin_memory=is_pinned)
        numbers = packed.numpy()
        numbers[2] = self.cache.scratch
        for column, row in enumerate(rows):
            seen = len(row.slots) * self.num_latents
            numbers[:5, column] = row.token_id, row.position, row.place, row.position + 1, seen
            numbers[5 : 5 + len(row.blocks), column] = row.blocks
            slots = 5 + self.max_blocks
            numbers[slots : slots + len(row.slots), column] = row.slots
        return packed

    def forward(self, num_rows: int) -> Tensor:
        """What is captured: it reads `inputs` and the caches, and asks the device nothing."""
        inputs = self.inputs[:, :num_rows]
        token_ids, positions, places, lengths, seen = inputs[:5]
        blocks, slots = inputs[5:].split([self.max_blocks, self.max_slots])
        table = Table(blocks.T, lengths, self.slopes, self.cache.reach.window)
        pictures = Table(slots.T, seen)

        def self_attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.cache.write(layer, places, k, v)
            return self.attend(q, *self.cache.in_blocks(layer), table)

        def cross_attend(block: int, q: Tensor) -> Tensor:
            return self.attend(q, *self.media.in_blocks(block), pictures)

        hidden = self.model(token_ids, positions, self_attend, cross_attend)
        return self.model.logits(hidden)


def graph_sizes(max_rows: int) -> list[int]:
    """1, 2, 4, then the multiples of 8; the last is `max_rows`."""
    sizes = [1, 2, 4, *range(8, max_rows, 8)]
    return [*(size for size in sizes if size < max_rows), max_rows]


@torch.inference_mode()
def captured(
    forward: Callable[[], Tensor], device: torch.device, pool: Any = None
) -> Callable[[], Tensor]:
    """`forward` as a CUDA graph, to be called again and again; elsewhere `forward` itself.

    Graphs may share a pool of memory: one runs at a time, and its result is read before the next.
    """
    if device.type != "cuda":
        return forward
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):  # which need not be the first
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, pool=pool, stream=side):
            result = forward()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def is_capturable(model: Flamingo) -> bool:
    """LLM.int8() looks for outliers from the CPU at every call, which no graph can hold."""
    return not any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def on_host(x: Tensor) -> Tensor:
    """On the CPU, from a GPU by way of pinned memory, which is several times as fast."""
    if not x.is_cuda:
        return x
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x)
