"""Beam search in the engine: live beams are sequences that share blocks; what all hypotheses that
can still win have in common is sent at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .answers import Host, PromptLogprobs, announce
from .beam import BeamOptions, BeamSearch
from .detokenize import Detokenizer
from .request import Draft, FinishReason, Request, Sequence, Task, TokenLogprob
from .sampling import Rules, check_finite, largest

if TYPE_CHECKING:
    from .constraints import Matcher  # its library is loaded for the first constraint

Answer = tuple[int, ...]


class BeamAnswers(Task):
    """One step of the search once every live beam has its logits."""

    def __init__(self, host: Host, request: Request, rules: Rules, blank: Detokenizer) -> None:
        """`blank` is a detokenizer without stop strings."""
        sampling = rules.sampling
        self.host, self.request, self.rules, self.blank = host, request, rules, blank
        self.width = sampling.num_beams
        options = BeamOptions(
            num_beams=sampling.num_beams,
            n=sampling.n,
            max_tokens=sampling.max_tokens,
            length_penalty=sampling.length_penalty,
            early_stopping=sampling.early_stopping,
            score_rule=sampling.score_rule,
        )
        num_prompt = len(request.prompt.token_ids)
        self.search = BeamSearch(options, num_prompt, rules.stop_ids, self.ends_text)
        self.beams = list(request.sequences)
        self.matchers: list[Matcher] = [sampling.grammar.start()] if sampling.grammar else []
        self.logits: dict[Sequence, Tensor] = {}
        self.logprobs = BeamLogprobs(sampling.logprobs, self.search.num_candidates)
        self.prompt_logprobs = PromptLogprobs(request.prompt.token_ids, rules)

    def take(self, sequence: Sequence, first: int, logits: Tensor) -> None:
        if self.request.first_token is None:
            self.prompt_logprobs.read(first, logits)
        if sequence not in self.beams or first + len(logits) < len(sequence.tokens):
            return  # the search went on while this was computed once more, or it is half a prompt
        self.logits[sequence] = logits[-1]
        if all(beam in self.logits for beam in self.beams):
            self.step()

    def step(self) -> None:
        if self.request.first_token is None:
            self.beams[0].logits_from = None
            announce(self.request, self.prompt_logprobs.found)
        parents = self.search.step(torch.stack([self.scores(i) for i in range(len(self.beams))]))
        self.logits.clear()
        self.follow(parents)
        self.send()
        if self.search.is_done:
            self.end()

    def scores(self, at: int) -> Tensor:
        """Log-probabilities [vocab] of what may follow beam `at`."""
        logits, answer = self.logits[self.beams[at]], self.search.live[at].token_ids
        check_finite(logits)
        raw = logits.float().log_softmax(-1)
        allowed = self.matchers[at].allowed() if self.matchers else None
        prompt = self.request.prompt.token_ids
        scores = self.rules.apply(raw.clone(), prompt, answer, allowed)
        self.logprobs.note(answer, raw, scores)
        return scores

    def follow(self, parents: list[int]) -> None:
        """Sequences for the new beams: a parent's own for its first child, forks for the others."""
        old, matchers = self.beams, self.matchers
        first_child = {parent: child for child, parent in reversed(list(enumerate(parents)))}
        self.beams = [
            old[parent] if first_child[parent] == child else self.host.fork(old[parent])
            for child, parent in enumerate(parents)
        ]
        for parent, beam in enumerate(old):
            if parent not in first_child:
                self.host.drop(beam)
        self.matchers = [matchers[parent].fork() for parent in parents] if matchers else []
        for at, beam in enumerate(self.beams):
            token = self.search.live[at].token_ids[-1]
            beam.tokens.append(token)
            if matchers:
                self.matchers[at].accept(token)

    def send(self) -> None:
        self.add(0, self.search.committed)
        lag = len(self.search.best) - len(self.search.committed)
        self.request.commit_lag = max(self.request.commit_lag or 0, lag)
        if self.rules.sampling.stream_hypotheses:
            choice = self.request.choices[0]
            text = choice.detokenizer.preview(self.without_end(self.search.best))
            self.request.deliver(Draft(0, text))

    def add(self, index: int, token_ids: Answer) -> None:
        """Tokens of a choice up to these; those it has are among them."""
        choice = self.request.choices[index]
        for at in range(len(choice.token_ids), len(token_ids)):
            is_end = token_ids[at] in self.rules.stop_ids
            choice.add(token_ids[at], self.logprobs.find(token_ids[: at + 1]), is_end)

    def end(self, reason: FinishReason | None = None) -> None:
        """Where rules and constraint leave fewer answers than asked for, the others are errors."""
        for choice, found in zip_longest(self.request.choices, self.search.results()):
            if found is None:
                choice.finish("error")
                continue
            self.add(choice.index, found.token_ids)
            choice.finish(reason or found.finish_reason, found.score)
        self.host.close(self.request, self.request.ended())

    def stop(self, reason: FinishReason) -> None:
        self.end(reason)

    def ends_text(self, token_ids: Iterable[int]) -> bool:
        """A stop string has come up in the text of this answer."""
        stop = self.rules.sampling.stop
        return bool(stop) and any(s in self.blank.whole(list(token_ids)) for s in stop)

    def without_end(self, token_ids: Answer) -> list[int]:
        return [t for t in token_ids if t not in self.rules.stop_ids]


class BeamLogprobs:
    """What the model itself gave the tokens that a search may take, if asked for."""

    def __init__(self, num_top: int | None, num_taken: int) -> None:
        self.num_top, self.num_taken = num_top, num_taken
        self.found: dict[Answer, tuple[dict[int, float], list[tuple[int, float]]]] = {}

    def note(self, answer: Answer, raw: Tensor, scores: Tensor) -> None:
        if self.num_top is None:
            return
        taken = scores.topk(min(self.num_taken, len(scores))).indices.tolist()
        of_taken = dict(zip(taken, raw[taken].tolist(), strict=True))
        self.found[answer] = of_taken, largest(raw, self.num_top)

    def find(self, answer: Answer) -> TokenLogprob | None:
        """Of its last token."""
        if self.num_top is None:
            return None
        taken, top = self.found[answer[:-1]]
        return TokenLogprob(answer[-1], taken[answer[-1]], top)
