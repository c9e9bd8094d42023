"""Constrained decoding: which tokens may come next, so that the text is one of the choices, matches
the regex or follows the JSON schema. llguidance does the work; this is the engine's face of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer
from torch import Tensor

from .grammar import TOO_COMPLEX, Compiler, Constraint, ConstraintError, Vocabulary

__all__ = ["Constraint", "ConstraintError", "Grammar", "Grammars", "Matcher"]


class Grammars:
    """Compiled constraints of one model, the `max_cached` last used of them. Thread-safe.

    `vocab_size` counts the model's rows: those without a token are never allowed, and neither are
    special tokens, except `end_ids` exactly where the answer may end.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, end_ids: list[int], *, max_cached: int = 16
    ) -> None:
        self.vocabulary = Vocabulary.of(tokenizer, vocab_size, end_ids)
        self.compiler = Compiler(self.vocabulary)
        self.alphabet = Alphabet(text_tokens(tokenizer, vocab_size, end_ids), end_ids)
        self.max_cached = max_cached
        self._cache: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, constraint: Constraint) -> Grammar | None:
        """The grammar, if it is compiled already."""
        with self._lock:
            grammar = self._cache.get(constraint)
            if grammar is not None:
                self._cache.move_to_end(constraint)
            return grammar

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises ConstraintError. Unbounded in time: strangers' constraints go through
        `flamingo_server.constraints` first."""
        grammar = self.find(constraint)
        if grammar is None:
            grammar = Grammar(self.compiler.compile(constraint), self.alphabet)
            with self._lock:
                self._cache[constraint] = grammar
                while len(self._cache) > self.max_cached:
                    self._cache.popitem(last=False)
        return grammar


@dataclass(frozen=True, eq=False)
class Alphabet:
    """`is_text` [vocab] bool: tokens that spell text. `end_ids` end an answer and spell none."""

    is_text: Tensor
    end_ids: list[int]


def text_tokens(tokenizer: Tokenizer, vocab_size: int, end_ids: list[int]) -> Tensor:
    special = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    is_text = torch.zeros(vocab_size, dtype=torch.bool)
    is_text[list(tokenizer.get_vocab().values())] = True
    is_text[[*special, *end_ids]] = False
    return is_text


@dataclass(frozen=True, eq=False)
class Grammar:
    """One compiled constraint; any number of answers start from it."""

    pristine: LLMatcher
    alphabet: Alphabet

    def start(self) -> Matcher:
        return Matcher(self.pristine.deep_copy(), self.alphabet)


class Matcher:
    """One answer on its way through a grammar. For one thread at a time."""

    def __init__(self, matcher: LLMatcher, alphabet: Alphabet) -> None:
        self._matcher, self._alphabet = matcher, alphabet
        self._mask: Tensor | None = None  # of the present state
        self._has_ended = False

    def allowed(self) -> Tensor:
        """Which tokens may come next [vocab] bool, the caller's own.

        Raises ConstraintError when the constraint turns out too complex, or spells a text that the
        vocabulary cannot.
        """
        return self._present().clone()

    def accept(self, token: int) -> None:
        """An end token ends the answer. Raises ValueError for a token that is not allowed."""
        if not self._present()[token]:
            raise ValueError(f"token {token} is not allowed here")
        if token in self._alphabet.end_ids:
            self._has_ended = True
        else:
            self._matcher.consume_token(token)
        self._mask = None

    def fork(self) -> Matcher:
        """A copy that goes its own way, for a beam."""
        other = Matcher(self._matcher.deep_copy(), self._alphabet)
        other._mask, other._has_ended = self._mask, self._has_ended
        return other

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end may follow. Raises what `allowed` raises."""
        return not bool((self._present() & self._alphabet.is_text).any())

    def _present(self) -> Tensor:
        if self._mask is None:
            self._mask = self._ended() if self._has_ended else self._compute()
        return self._mask

    def _ended(self) -> Tensor:
        mask = torch.zeros_like(self._alphabet.is_text)
        mask[self._alphabet.end_ids] = True
        return mask

    def _compute(self) -> Tensor:
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        can_end = self._matcher.is_accepting()
        if self._matcher.is_error():
            raise ConstraintError(TOO_COMPLEX)
        is_text = self._alphabet.is_text
        bits = np.unpackbits(packed, count=len(is_text), bitorder="little")
        mask = torch.from_numpy(bits).bool() & is_text
        mask[self._alphabet.end_ids] = can_end
        if not mask.any():
            raise ConstraintError("The model's tokens cannot spell what the constraint asks for.")
        return mask
