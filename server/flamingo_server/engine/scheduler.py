"""What the next step computes. Pure Python: it knows counts and blocks, not tensors.

Every running sequence has tokens that are not in the cache yet: a prompt many, one that decodes
a single one. A step takes of each as many as its budget allows, in order of rank.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .block_tables import BlockTables
from .blocks import BlockPool, OutOfBlocks
from .request import Request, Sequence


class MediaPins(Protocol):
    """What the scheduler asks of the media cache."""

    def can_pin(self, request: Request, wanted: set[int]) -> bool: ...
    def pin(self, request: Request, wanted: set[int]) -> None: ...
    def unpin(self, request: Request) -> None: ...


@dataclass(frozen=True)
class Chunk:
    """Tokens [begin, end) of a sequence; blocks to copy before, blocks it is the first to fill."""

    sequence: Sequence
    begin: int
    end: int
    copies: list[tuple[int, int]]
    fills: list[int]

    @property
    def has_tree(self) -> bool:
        """It reaches into a tree of candidates; the prompt before that is plain text."""
        return self.sequence.tree is not None and self.end > self.sequence.num_prompt

    @property
    def is_decode(self) -> bool:
        """One token behind all others of a plain text, which decoding has a fast way for."""
        return self.end - self.begin == 1 and not self.has_tree

    @property
    def wanted(self) -> range:
        """The tokens whose logits are wanted."""
        return range(max(self.begin, self.sequence.wanted_from), self.end)


@dataclass
class Plan:
    """One step. Later chunks may read what earlier ones of the same step write."""

    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.chunks)

    @property
    def num_tokens(self) -> int:
        return sum(chunk.end - chunk.begin for chunk in self.chunks)

    @property
    def decodes(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.is_decode]

    @property
    def prefills(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if not chunk.is_decode]

    def in_order(self) -> list[Chunk]:
        """As the flat batch has them."""
        return self.decodes + self.prefills

    def requests(self) -> list[Request]:
        return list(dict.fromkeys(chunk.sequence.request for chunk in self.chunks))


class Scheduler:
    """Owns the waiting and running requests, both in order of rank, and deals out blocks.

    `is_deterministic`: prompts run in chunks that end where blocks end, and whole blocks of prompts
    only are shared, so that each number comes from the same shapes whatever else goes on.
    """

    def __init__(
        self,
        max_running: int,
        max_step_tokens: int,
        blocks: BlockPool,
        media: MediaPins,
        is_deterministic: bool = False,
    ) -> None:
        self.max_running, self.max_step_tokens = max_running, max_step_tokens
        self.blocks, self.media = blocks, media
        self.is_deterministic = is_deterministic
        self.tables = BlockTables(blocks, is_deterministic)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0

    # ---- who runs

    def add(self, request: Request) -> None:
        insort(self.waiting, request, key=lambda r: r.rank)

    def admit(self) -> list[Request]:
        """Those that begin, or begin again, now. Nobody overtakes the first in line."""
        admitted = []
        while self.waiting and self.make_place(self.waiting[0]):
            request = self.waiting.pop(0)
            insort(self.running, request, key=lambda r: r.rank)
            admitted.append(request)
        return admitted

    def make_place(self, request: Request) -> bool:
        """Takes blocks with its prefix and media slots, if need be from those of less priority."""
        while not self.start(request):
            last = self.running[-1] if self.running else None
            if last is None or last.priority >= request.priority:
                return False
            self.preempt(last)
        return True

    def start(self, request: Request) -> bool:
        if request.task.width > self.max_running - sum(r.task.width for r in self.running):
            return False
        for sequence in request.sequences:
            self.tables.match_blocks(sequence)
        wanted = request.media_from(min(s.num_computed for s in request.sequences))
        if self.has_room(request) and self.media.can_pin(request, wanted):
            self.media.pin(request, wanted)
            return True
        self.let_go(request)
        return False

    def has_room(self, request: Request) -> bool:
        """The whole blocks of the prompt count once: whoever comes second finds them."""
        first, *others = request.sequences
        shared = first.num_prompt // self.blocks.block_size
        missing = self.blocks.blocks_for(len(first.tokens)) - len(first.blocks) + 1
        for other in others:
            held = max(len(other.blocks), shared)
            missing += self.blocks.blocks_for(len(other.tokens)) - held + 1
        return missing <= self.blocks.num_available

    def preempt(self, request: Request) -> None:
        """Back into the line; what it computed is found again unless the room is needed."""
        self.num_preemptions += 1
        self.running.remove(request)
        self.let_go(request)
        self.media.unpin(request)
        request.has_media = False
        self.add(request)

    def let_go(self, request: Request) -> None:
        if request.first_token is None:
            request.cached_tokens = 0
        for sequence in request.sequences:
            self.tables.release(sequence)

    def remove(self, request: Request) -> None:
        """Gives back all that the request holds, wherever it stands."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running.remove(request)
            self.media.unpin(request)
        self.let_go(request)

    def holds(self, request: Request) -> bool:
        return request in self.running or request in self.waiting

    def requests(self) -> Iterator[Request]:
        yield from (*self.running, *self.waiting)

    # ---- what runs

    def schedule(self) -> Plan:
        """Every decode first, then prompts by rank until the budget is spent."""
        plan = Plan()
        for wants_decodes in (True, False):
            for request in list(self.running):
                if request.has_media and request in self.running:
                    self.schedule_request(plan, request, wants_decodes)
        return plan

    def schedule_request(self, plan: Plan, request: Request, wants_decodes: bool) -> None:
        """Without a block for it, and with nobody of lower rank to displace, it waits again."""
        for sequence in list(request.sequences):
            missing = len(sequence.tokens) - sequence.num_computed
            budget = self.max_step_tokens - plan.num_tokens
            if not missing or is_decoding(sequence) != wants_decodes:
                continue
            if budget < (1 if wants_decodes else self.least_chunk):
                continue
            try:
                plan.chunks.append(self.next_chunk(plan, sequence, budget))
            except OutOfBlocks:
                self.withdraw(plan, request)
                self.preempt(request)
                return

    def next_chunk(self, plan: Plan, sequence: Sequence, budget: int) -> Chunk:
        """Raises OutOfBlocks."""
        copies = [] if is_decoding(sequence) else self.tables.match(sequence)
        begin, end = sequence.num_computed, self.chunk_end(sequence, budget)
        copies += self.make_room(plan, sequence, end)
        fills = [] if is_decoding(sequence) else self.tables.register(sequence, end)
        return Chunk(sequence, begin, end, copies, fills)

    @property
    def least_chunk(self) -> int:
        """Of a prompt. If numbers must not depend on company, nor may the cuts."""
        size = self.blocks.block_size
        return min(size, self.max_step_tokens) if self.is_deterministic else 1

    def chunk_end(self, sequence: Sequence, budget: int) -> int:
        begin, size = sequence.num_computed, self.blocks.block_size
        end = min(len(sequence.tokens), begin + budget)
        if not self.is_deterministic:
            return end
        end = min(end, begin + self.max_step_tokens, (begin // size + 1) * size)
        if begin < sequence.num_prompt:
            return min(end, sequence.num_prompt)
        return end if sequence.tree else begin + 1  # as it was when it was generated

    def make_room(self, plan: Plan, sequence: Sequence, end: int) -> list[tuple[int, int]]:
        """Blocks for the tokens up to `end`, those of the last in rank if there is no other."""
        while True:
            try:
                return self.tables.take_blocks(sequence, end)
            except OutOfBlocks:
                last = self.running[-1]
                if last is sequence.request:
                    raise
                self.withdraw(plan, last)
                self.preempt(last)

    def withdraw(self, plan: Plan, request: Request) -> None:
        """What this step would have computed of it is not in the cache after all.

        Nobody relies on it: decodes are registered after a step, and prompts are planned by rank.
        """
        for chunk in [c for c in plan.chunks if c.sequence.request is request]:
            plan.chunks.remove(chunk)
            for block in chunk.fills:
                self.blocks.forget(block)

    def commit(self, plan: Plan) -> None:
        """The step has run."""
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
            for block in (*chunk.fills, *self.tables.register(chunk.sequence, chunk.end)):
                if node := self.blocks.nodes.get(block):
                    node.is_computed = True

    def check_integrity(self) -> None:
        """Each block is held by those sequences that name it, and by none besides."""
        self.blocks.check_integrity()
        held = Counter(b for r in self.requests() for s in r.sequences for b in s.blocks)
        assert held == self.blocks.references, "blocks are held by nobody, or not counted"


def is_decoding(sequence: Sequence) -> bool:
    """All but the last token are in the cache."""
    return 0 < sequence.num_computed == len(sequence.tokens) - 1 and sequence.tree is None
