"""What sequences do with blocks: find those computed before, take new ones, fork, give back."""

from __future__ import annotations

from dataclasses import replace

from .blocks import BlockPool, Node
from .request import Request, Sequence


class BlockTables:
    """The blocks of all sequences. With `is_deterministic` only whole blocks of prompts are shared:
    other tokens come from kernels that round otherwise.
    """

    def __init__(self, blocks: BlockPool, is_deterministic: bool = False) -> None:
        self.blocks, self.is_deterministic = blocks, is_deterministic

    def take_blocks(self, sequence: Sequence, end: int) -> list[tuple[int, int]]:
        """Returns the copies to make before: what it goes on writing to must be its own.

        Raises OutOfBlocks, with no copy left out: who tries again gets it then.
        """
        blocks, at = sequence.blocks, sequence.num_computed // self.blocks.block_size
        writes_to = at < len(blocks)
        num = self.blocks.blocks_for(end) - len(blocks)
        if num > 0:
            blocks += self.blocks.allocate(num, after=blocks[-1] if blocks else 0)
        # Last, for the rest may be tried again.
        copy = self.blocks.make_own(blocks, at) if writes_to else None
        return [copy] if copy else []

    def match(self, sequence: Sequence) -> list[tuple[int, int]]:
        """Takes over the blocks that hold what it would compute next; returns the copies to make.

        Tokens whose logits are wanted run in any case.
        """
        copies = list[tuple[int, int]]()
        if self.match_blocks(sequence) and not self.is_deterministic:
            copies += self.match_part(sequence)
        return copies

    def match_blocks(self, sequence: Sequence) -> bool:
        """Whole blocks. True where something of the next one might be known, too."""
        size, limit = self.blocks.block_size, self.findable(sequence, sequence.wanted_from)
        while self.is_on_tree(sequence) and sequence.num_computed < limit:
            begin = sequence.num_computed
            if begin + size > limit:
                return True
            child = self.node(sequence).child(sequence.places(begin, begin + size))
            if child is None:
                return True
            sequence.blocks += self.blocks.share([child.block])
            sequence.node = child
            sequence.num_registered += 1
            self.skip(sequence, size)
        return False

    def match_part(self, sequence: Sequence) -> list[tuple[int, int]]:
        """A copy of the beginning of a block that goes on otherwise."""
        begin, limit = sequence.num_computed, self.findable(sequence, sequence.wanted_from)
        end = min(begin + self.blocks.block_size, limit)
        alike, num = self.node(sequence).closest(sequence.places(begin, end))
        if alike is None or not self.blocks.num_available:
            return []
        held = self.blocks.share([alike.block])  # so that it is not the one that is evicted
        try:
            last = sequence.blocks[-1] if sequence.blocks else 0
            sequence.blocks += self.blocks.allocate(1, after=last)
        finally:
            self.blocks.release(held)
        self.skip(sequence, num)
        return [(alike.block, sequence.blocks[-1])]

    def skip(self, sequence: Sequence, num: int) -> None:
        sequence.num_computed += num
        if sequence.request.first_token is None:
            sequence.request.cached_tokens += num

    def is_on_tree(self, sequence: Sequence) -> bool:
        """At the end of a block, all of it and before it registered."""
        is_known = sequence.num_registered * self.blocks.block_size == sequence.num_computed
        request = sequence.request  # once it has read its prompt, it needs no more of that
        return is_known and (request.reuses_prefix or request.first_token is not None)

    def register(self, sequence: Sequence, end: int) -> list[int]:
        """Lets others find the blocks up to token `end`; returns those that were not known."""
        size, found = self.blocks.block_size, list[int]()
        limit = self.findable(sequence, end)
        while (sequence.num_registered + 1) * size <= limit:
            begin = sequence.num_registered * size
            block, places = sequence.blocks[begin // size], sequence.places(begin, begin + size)
            sequence.node = self.blocks.register(block, self.node(sequence), places)
            sequence.num_registered += 1
            if sequence.node.block == block:
                found.append(block)
        sequence.request.filled.update(found)
        return found

    def findable(self, sequence: Sequence, end: int) -> int:
        """Up to where a prefix may be shared: never a tree of candidates."""
        ends_at_prompt = self.is_deterministic or sequence.tree is not None
        return min(end, sequence.num_prompt) if ends_at_prompt else end

    def node(self, sequence: Sequence) -> Node:
        return sequence.node or self.blocks.root(sequence.request.prefix_root)

    # ---- the life of a sequence's blocks

    def fork(self, sequence: Sequence) -> Sequence:
        """Another that goes on from the same tokens; blocks are copied once one is written to."""
        other = replace(sequence, tokens=list(sequence.tokens), blocks=[])
        other.blocks = self.blocks.share(sequence.blocks)
        sequence.request.sequences.append(other)
        return other

    def finish(self, sequence: Sequence) -> None:
        """It ended well: the last block is kept, too, for who begins the same."""
        begin = sequence.num_registered * self.blocks.block_size
        end = self.findable(sequence, sequence.num_computed)
        if end > begin and not self.is_deterministic:
            places = sequence.places(begin, end)
            block = sequence.blocks[sequence.num_registered]
            self.blocks.register(block, self.node(sequence), places).is_computed = True
        self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        self.release(sequence)
        sequence.request.sequences.remove(sequence)

    def release(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.node = [], None
        sequence.num_computed = sequence.num_registered = 0

    def forget(self, request: Request) -> None:
        """What it computed itself may be wrong: nobody finds it any more, nor what follows it."""
        for sequence in request.sequences:
            for block in request.filled.intersection(sequence.blocks):
                self.blocks.forget(block)
