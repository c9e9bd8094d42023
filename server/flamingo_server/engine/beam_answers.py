"""Beam search in the engine: live beams are sequences that share blocks; what all hypotheses that
can still win have in common is sent at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .answers import Host, announce
from .beam import BeamOptions, BeamSearch, Hypothesis
from .detokenize import Detokenizer
from .request import Draft, FinishReason, Request, Sequence, Task, TokenLogprob
from .sampling import Rules, check_finite

if TYPE_CHECKING:
    pass  # its library is loaded for the first constraint

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
        self.matchers = [sampling.grammar.start()] if sampling.grammar else []
        self.logits: dict[Sequence, Tensor] = {}
        self.logprobs = BeamLogprobs(sampling.logprobs, sampling.num_beams)

    def take(self, sequence: Sequence, first: int, logits: Tensor) -> None:
        self.logits[sequence] = logits[-1]
        if all(beam in self.logits for beam in self.beams):
            self.step()

    def step(self) -> None:
        if self.request.first_token is None:
            announce(self.request)
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
        for choice, found in zip(self.request.choices, self.search.results(), strict=True):
            self.add(choice.index, found.token_ids)
            choice.finish(reason or self.reason(found), found.score)
        self.host.close(self.request, self.request.ended())

    def reason(self, found: Hypothesis) -> FinishReason:
        return found.finish_reason

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

    def __init__(self, num_top: int | None, num_beams: int) -> None:
        self.num_top, self.num_taken = num_top, 2 * num_beams + 2
        self.found: dict[Answer, tuple[dict[int, float], list[tuple[int, float]]]] = {}

    def note(self, answer: Answer, raw: Tensor, scores: Tensor) -> None:
        if self.num_top is None:
            return
        taken = scores.topk(min(self.num_taken, len(scores))).indices.tolist()
        top = raw.topk(min(self.num_top, len(raw)))
        pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        self.found[answer] = dict(zip(taken, raw[taken].tolist(), strict=True)), pairs

    def find(self, answer: Answer) -> TokenLogprob | None:
        """Of its last token."""
        if self.num_top is None:
            return None
        taken, top = self.found[answer[:-1]]
        return TokenLogprob(answer[-1], taken[answer[-1]], top)
