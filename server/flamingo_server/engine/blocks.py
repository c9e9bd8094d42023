"""Who owns which block of the key/value cache, and which blocks hold a prefix seen before.

Pure Python: it knows numbers of blocks, not tensors. A block that nobody uses keeps its content
until the room is needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

LOOKED_THROUGH = 64  # children of a node, latest first, that `closest` compares
MANY_ROOTS = 1024

Places = tuple[Hashable, ...]
"""What decides the keys and values of some tokens: of each its id and the digests it sees."""


class OutOfBlocks(Exception):
    """Every block is in use."""


@dataclass(eq=False)
class Node:
    """A cached block: what it holds, and the blocks that were seen to follow it."""

    block: int
    parent: Node | None
    places: Places
    is_computed: bool = False  # known already when a step is planned, filled when it has run
    children: dict[Places, Node] = field(default_factory=dict)

    def child(self, places: Places) -> Node | None:
        """Equal places, not just an equal hash."""
        return self.children.get(places)

    def closest(self, places: Places) -> tuple[Node | None, int]:
        """The computed child that begins most like `places`, and how many of them it shares."""
        best, most = None, 0
        for child in islice(reversed(self.children.values()), LOOKED_THROUGH):
            if child.is_computed and (num := common(child.places, places)) > most:
                best, most = child, num
        return best, most


def common(one: Places, other: Places) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class BlockPool:
    """Blocks 1 to `num_blocks` of `block_size` tokens; block 0 is for padding and never given out.

    A sequence holds its blocks by reference. Sharing is by whole blocks; what a sequence writes to
    is its own (`make_own`).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.free = set(range(1, num_blocks + 1))
        self.references: dict[int, int] = {}
        self.roots: dict[Hashable, Node] = {}
        self.nodes: dict[int, Node] = {}  # the cached ones, by block
        self.idle: OrderedDict[int, None] = OrderedDict()  # cached and unused, oldest first

    @property
    def num_available(self) -> int:
        return len(self.free) + len(self.idle)

    @property
    def num_used(self) -> int:
        return len(self.references)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # ---- taking and giving back

    def allocate(self, num: int, after: int = 0) -> list[int]:
        """`num` blocks, side by side where there is such a place, best behind block `after`.

        Neighbours are read in place, without a copy. Raises OutOfBlocks and then takes none.
        """
        if num > self.num_available:
            raise OutOfBlocks
        while len(self.free) < num:
            self.evict()
        taken = list[int]()
        while len(taken) < num:
            block = taken[-1] + 1 if taken else after + 1
            taken.append(block if block in self.free else self.roomiest(num - len(taken)))
            self.free.remove(taken[-1])
        self.references.update(dict.fromkeys(taken, 1))
        return taken

    def roomiest(self, wanted: int) -> int:
        """The first block of a run of `wanted` free ones, or of the longest there is."""
        best, best_length, start, length = 0, 0, 0, 0
        for block in sorted(self.free):
            start, length = (start, length + 1) if block == start + length else (block, 1)
            if length > best_length:
                best, best_length = start, length
            if length >= wanted:
                return start
        return best

    def share(self, blocks: Sequence[int]) -> list[int]:
        """One more holder of each."""
        for block in blocks:
            self.references[block] = self.references.get(block, 0) + 1
            self.idle.pop(block, None)
        return list(blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """One holder fewer; the last block of a prefix becomes the first to be evicted."""
        for block in reversed(blocks):
            self.references[block] -= 1
            if not self.references[block]:
                del self.references[block]
                if block in self.nodes:
                    self.idle[block] = None
                else:
                    self.free.add(block)

    def make_own(self, blocks: list[int], at: int) -> tuple[int, int] | None:
        """Copy on write: puts a block of its own at place `at` if others hold or know that one.

        Returns (from, to) where the content has to be copied. Raises OutOfBlocks.
        """
        old = blocks[at]
        if self.references[old] == 1 and old not in self.nodes:
            return None
        [new] = self.allocate(1, after=blocks[at - 1] if at else 0)
        self.release([old])
        blocks[at] = new
        return old, new

    # ---- the prefix tree

    def root(self, name: Hashable) -> Node:
        """Where prefixes of one adapter and tenant begin; others never meet them."""
        if name not in self.roots:
            if len(self.roots) >= MANY_ROOTS:  # names come from clients
                self.roots = {n: root for n, root in self.roots.items() if root.children}
            self.roots[name] = Node(0, None, ())
        return self.roots[name]

    def register(self, block: int, parent: Node, places: Places) -> Node:
        """From now on `block` is found behind `parent`; the same content in another block stays."""
        known = parent.child(places)
        if known is not None:
            return known
        if block in self.nodes:
            self.forget(block)
        node = parent.children[places] = self.nodes[block] = Node(block, parent, places)
        return node

    def forget(self, block: int) -> None:
        """`block` and what follows it are no longer found; who holds them keeps them."""
        node = self.nodes.get(block)
        if node is None:
            return
        assert node.parent is not None
        del node.parent.children[node.places]
        below = [node]
        while below:
            node = below.pop()
            below += node.children.values()
            node.children = {}
            del self.nodes[node.block]
            if node.block in self.idle:
                del self.idle[node.block]
                self.free.add(node.block)

    def evict(self) -> None:
        """The block longest unused gives its content up."""
        self.forget(next(iter(self.idle)))

    def check_integrity(self) -> None:
        """Every block is free, idle or held; a cached one stands in the tree where it says."""
        states = [*self.free, *self.idle, *self.references]
        assert sorted(states) == list(range(1, self.num_blocks + 1)), "blocks leaked"
        assert self.idle.keys() <= self.nodes.keys(), "an idle block holds nothing"
        for block, node in self.nodes.items():
            assert node.block == block and node.parent is not None
            assert node.parent.children.get(node.places) is node, "the prefix tree is torn"
