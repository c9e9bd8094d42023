"""A key/value cache that remembers what was written into it, to find out who reads what.

In place of a key each cell holds what decides it: the tenant, and every token up to this one with
the pictures it looks at.
"""

from __future__ import annotations

from collections.abc import Hashable

from flamingo_server.engine.media_cache import MediaCache
from flamingo_server.engine.request import Sequence
from flamingo_server.engine.scheduler import Chunk, Plan


class BlockMemory:
    """Runs plans as the runner does: all copies, then all writes, then all reads."""

    def __init__(self, block_size: int, is_deterministic: bool = False) -> None:
        self.block_size, self.is_deterministic = block_size, is_deterministic
        self.cells: dict[tuple[int, int], Hashable] = {}
        self.slots: dict[int, str] = {}

    def fill_slots(self, media: MediaCache) -> None:
        self.slots = {media.slot_of[digest]: digest for digest in media.filled}

    def run(self, plan: Plan) -> None:
        self.copy(plan)
        written = [self.cell(c.sequence, i) for c in plan.chunks for i in range(c.begin, c.end)]
        assert len(written) == len(set(written)), "two write to one place"
        writers = [{block for block, _ in self.cells_of(chunk)} for chunk in plan.chunks]
        assert sum(map(len, writers)) == len(set[int]().union(*writers)), "two write to one block"
        for chunk in plan.chunks:
            for place in range(chunk.begin, chunk.end):
                self.cells[self.cell(chunk.sequence, place)] = history(chunk.sequence, place)
            if self.is_deterministic:
                self.check(chunk)
        for chunk in plan.chunks:
            self.check(chunk)

    def spoil(self, plan: Plan) -> None:
        """What is left of a step that failed half way."""
        self.copy(plan)
        for chunk in plan.chunks:
            self.cells.update(dict.fromkeys(self.cells_of(chunk), "spoilt"))

    def copy(self, plan: Plan) -> None:
        for chunk in plan.chunks:
            for source, target in chunk.copies:
                for i in range(self.block_size):
                    self.cells[target, i] = self.cells.get((source, i))

    def cells_of(self, chunk: Chunk) -> list[tuple[int, int]]:
        return [self.cell(chunk.sequence, place) for place in range(chunk.begin, chunk.end)]

    def cell(self, sequence: Sequence, place: int) -> tuple[int, int]:
        number, offset = divmod(place, self.block_size)
        return sequence.blocks[number], offset

    def check(self, chunk: Chunk) -> None:
        """All that it reads is what it would have computed itself."""
        sequence, request = chunk.sequence, chunk.sequence.request
        for place in range(chunk.end):
            if sequence.tree is None or place < sequence.num_prompt or place >= chunk.begin:
                assert self.cells[self.cell(sequence, place)] == history(sequence, place)
        for place in range(chunk.begin, chunk.end):
            for index in request.visible(request.prompt.media_at(place)):
                assert self.slots[request.slots[index]] == request.prompt.media[index].digest


def history(sequence: Sequence, place: int) -> Hashable:
    """What decides the key of a token: itself and all it follows, each with its pictures."""
    places, num = sequence.places(0, len(sequence.tokens)), sequence.num_prompt
    if sequence.tree is None or place < num:
        return sequence.request.prompt.salt, places[: place + 1]
    path = [places[num + node] for node in reversed(sequence.tree.path(place - num))]
    return sequence.request.prompt.salt, (*places[:num], *path)
