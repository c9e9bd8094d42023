"""Closed-ended answers: the log-probability of every token of many candidates behind one prompt.

The candidates are a trie: a token that several begin with is computed once. The trie runs as a
flat batch in which a token sees the prompt and those it follows, some hundred at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import DeadlineExceeded
from .answers import Host, announce
from .request import FinishReason, Request, Scored, Sequence, Task, Tree
from .sampling import check_finite


@dataclass
class Trie:
    """Nodes are numbers; 0 is the prompt. A candidate is the node it ends in."""

    tokens: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [-1])
    children: list[dict[int, int]] = field(default_factory=lambda: [{}])

    def add(self, token_ids: list[int]) -> int:
        node = 0
        for token in token_ids:
            if token not in self.children[node]:
                self.children[node][token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.children.append({})
            node = self.children[node][token]
        return node

    def path(self, node: int) -> list[int]:
        """From below the prompt to `node`."""
        found = list[int]()
        while node:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def inner(self) -> Iterator[int]:
        """Those that something follows, without the prompt: depth first, parents first."""
        todo = list(reversed(self.children[0].values()))
        while todo:
            node = todo.pop()
            if self.children[node]:
                yield node
                todo += reversed(self.children[node].values())

    def parts(self, size: int) -> Iterator[list[int]]:
        """The inner nodes in parts of about `size`, each with all that its nodes follow."""
        part = list[int]()
        for node in self.inner():
            if len(part) >= size:
                yield part
                part = self.path(node)[:-1]
            part.append(node)
        if part:
            yield part


class ScoredCandidates(Task):
    """First the prompt, whose end says how each first token does; then part after part."""

    width = 1

    def __init__(
        self, host: Host, request: Request, candidates: list[list[int]], at_once: int
    ) -> None:
        """No candidate is empty. `at_once` bounds the tokens that take up blocks together."""
        self.host, self.request = host, request
        self.trie = Trie()
        self.ends = [self.trie.add(token_ids) for token_ids in candidates]
        self.parts = self.trie.parts(at_once)
        self.part = [0]
        self.logprobs = [0.0] * len(self.trie.tokens)  # of each node behind its parent

    def take(self, sequence: Sequence, first: int, logits: Tensor) -> None:
        begin = first - sequence.num_prompt
        nodes = [0] if sequence.tree is None else self.part[begin : begin + len(logits)]
        self.read(nodes, logits)
        if first + len(logits) == len(sequence.tokens):
            if self.request.first_token is None:
                announce(self.request)
            self.go_on(sequence)

    def read(self, nodes: list[int], logits: Tensor) -> None:
        """`logits` [n, vocab] behind each of these nodes say how its children do."""
        logits = logits.float()
        total = logits.logsumexp(-1)
        check_finite(total)
        pairs = [(row, child) for row, node in enumerate(nodes) for child in self.below(node)]
        rows, children = zip(*pairs, strict=True)
        tokens = [self.trie.tokens[child] for child in children]
        found = logits[rows, tokens] - total[list(rows)]
        for child, logprob in zip(children, found.tolist(), strict=True):
            self.logprobs[child] = logprob

    def below(self, node: int) -> Iterable[int]:
        return self.trie.children[node].values()

    def go_on(self, sequence: Sequence) -> None:
        """The next part takes the place of the last one behind the prompt."""
        part = next(self.parts, None)
        if part is None:
            self.host.finish(sequence)
            self.request.deliver(Scored(self.results()))
            self.host.close(self.request, self.request.ended())
            return
        number = {node: i for i, node in enumerate(part)}
        parents = [number.get(self.trie.parents[node], -1) for node in part]
        tokens = [self.trie.tokens[node] for node in part]
        self.part = part
        sequence.tree = Tree(tokens, parents)
        sequence.tokens = self.request.prompt.token_ids + tokens
        sequence.num_computed = sequence.logits_from = sequence.num_prompt

    def results(self) -> list[list[float]]:
        return [[self.logprobs[node] for node in self.trie.path(end)] for end in self.ends]

    def stop(self, reason: FinishReason) -> None:
        """Half of the scores are no answer."""
        raise DeadlineExceeded("deadline_ms passed before all candidates were scored")
