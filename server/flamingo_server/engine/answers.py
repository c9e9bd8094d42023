"""Sampled answers: `n` choices that go on from one prompt, each by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from .choice import Choice
from .request import Event, FinishReason, Request, Sequence, Started, Task, TokenLogprob
from .sampling import Rules, check_finite, choose_token, token_logprob

if TYPE_CHECKING:
    from .constraints import Matcher  # its library is loaded for the first constraint


class Host(Protocol):
    """What tasks ask of the engine."""

    def fork(self, sequence: Sequence) -> Sequence:
        """Another that goes on from the same tokens, at no cost."""

    def finish(self, sequence: Sequence) -> None:
        """It has ended well; its blocks go back, and may serve who begins the same."""

    def drop(self, sequence: Sequence) -> None:
        """It is given up."""

    def close(self, request: Request, event: Event) -> None:
        """The last event; everything goes back."""


class SampledAnswers(Task):
    """The prompt once, then a token for every choice in each step."""

    def __init__(self, host: Host, request: Request, rules: Rules) -> None:
        self.host, self.request, self.rules = host, request, rules
        self.width = rules.sampling.n
        self.choices: dict[Sequence, Choice] = {}
        self.matchers: dict[Sequence, Matcher] = {}
        self.prompt_logprobs = PromptLogprobs(request.prompt.token_ids, rules)

    def take(self, sequence: Sequence, first: int, logits: Tensor) -> None:
        if self.request.first_token is not None:
            self.accept(sequence, *self.choose(sequence, logits[-1]))
            return
        self.prompt_logprobs.read(first, logits)
        if first + len(logits) == len(sequence.tokens):
            self.begin(sequence)
            chosen = [(mine, self.choose(mine, logits[-1])) for mine in self.choices]
            announce(self.request, self.prompt_logprobs.found)  # just before what comes with it
            for mine, token in chosen:
                self.accept(mine, *token)

    def begin(self, sequence: Sequence) -> None:
        """The prompt is in the cache: every choice gets its sequence."""
        sequence.logits_from = None
        grammar = self.rules.sampling.grammar
        for choice in self.request.choices:
            mine = self.host.fork(sequence) if choice.index else sequence
            self.choices[mine] = choice
            if grammar is not None:
                self.matchers[mine] = grammar.start()

    def choose(self, sequence: Sequence, logits: Tensor) -> tuple[int, TokenLogprob | None]:
        """The next token of one choice."""
        choice, matcher = self.choices[sequence], self.matchers.get(sequence)
        prompt, allowed = self.request.prompt.token_ids, matcher.allowed() if matcher else None
        return choose_token(logits, self.rules, prompt, choice.token_ids, choice.random, allowed)

    def accept(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        """Adds a token to its choice, and ends it where it must end."""
        choice, matcher = self.choices[sequence], self.matchers.get(sequence)
        sequence.tokens.append(token)
        if matcher:
            matcher.accept(token)
        is_end = token in self.rules.stop_ids
        choice.add(token, logprob, is_end)
        if is_end or choice.has_stopped or (matcher and matcher.is_finished):
            self.end(sequence, "stop")
        elif len(choice.token_ids) >= self.rules.sampling.max_tokens:
            self.end(sequence, "length")

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        self.choices.pop(sequence).finish(reason)
        self.matchers.pop(sequence, None)
        self.host.finish(sequence)
        if not self.choices:
            self.host.close(self.request, self.request.ended())

    def stop(self, reason: FinishReason) -> None:
        for sequence in list(self.choices):
            self.end(sequence, reason)


class PromptLogprobs:
    """The log-probability of every prompt token but the first, if asked for."""

    def __init__(self, token_ids: list[int], rules: Rules) -> None:
        self.token_ids, self.rules = token_ids, rules
        self.num_top = rules.sampling.prompt_logprobs
        self.found: list[TokenLogprob | None] | None = None if self.num_top is None else [None]

    def read(self, first: int, logits: Tensor) -> None:
        """`logits` [n, vocab] behind the tokens `first`, `first` + 1, ..."""
        if self.found is None:
            return
        del self.found[first + 1 :]  # a request that was displaced reads them again
        for place, row in enumerate(logits, first + 1):
            if place < len(self.token_ids):
                check_finite(row)
                logprobs = row.double().log_softmax(-1)
                self.found.append(token_logprob(logprobs, self.token_ids[place], self.num_top))


def announce(request: Request, prompt_logprobs: list[TokenLogprob | None] | None = None) -> None:
    """The first token is there."""
    request.first_token = time.monotonic()
    request.deliver(Started(request.usage(), prompt_logprobs))
