"""Logits → the next token of each choice. Each has its own seeded random numbers, so that what
else is in the batch never changes what it draws.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadRequest
from .request import Sampling, TokenLogprob


class NotFiniteError(Exception):
    """The model gave logits that are not numbers."""


class NothingAllowedError(BadRequest):
    """The rules together leave no token to choose."""


@dataclass(frozen=True)
class Rules:
    """What may be chosen at all: `banned` tokens never, `stop_ids` not before `min_tokens`."""

    sampling: Sampling
    banned: Tensor
    stop_ids: list[int]

    @property
    def is_plain(self) -> bool:
        """Nothing is asked but the likeliest token."""
        s = self.sampling
        is_greedy = s.temperature == 0 and s.logprobs is None and s.grammar is None
        return is_greedy and s.repetition_penalty == 1.0 and not s.no_repeat_ngram_size

    def apply(
        self, scores: Tensor, prompt: list[int], answer: Sequence[int], allowed: Tensor | None
    ) -> Tensor:
        """Changes and returns one row [vocab] of logits, or of log-probabilities in beam search.

        `allowed` is what a grammar leaves. As transformers' processors of the same names.
        """
        s = self.sampling
        if s.repetition_penalty != 1.0:
            scores = penalise(scores, {*prompt, *answer}, s.repetition_penalty)
        if s.no_repeat_ngram_size:
            scores[repeated_next([*prompt, *answer], s.no_repeat_ngram_size)] = -torch.inf
        scores[self.banned] = -torch.inf
        if len(answer) < s.min_tokens:
            scores[self.stop_ids] = -torch.inf
        return scores if allowed is None else scores.masked_fill_(~allowed, -torch.inf)


def choose_token(
    logits: Tensor,
    rules: Rules,
    prompt: list[int],
    answer: Sequence[int],
    dice: random.Random,
    allowed: Tensor | None = None,
) -> tuple[int, TokenLogprob | None]:
    """One row of logits [vocab] → a token, and its log-probability if asked for.

    Log-probabilities are of the model's own distribution over what is not banned, before any
    sampling rule. Raises NotFiniteError, NothingAllowedError.
    """
    check_finite(logits)
    sampling = rules.sampling
    if rules.is_plain and allowed is None:
        return likeliest(logits, rules, len(answer)), None
    logits = logits.to(torch.float64, copy=True)  # so that no temperature overflows
    logits[rules.banned] = -torch.inf
    logprobs = logits.log_softmax(-1) if sampling.logprobs is not None else None
    token = draw(rules.apply(logits, prompt, answer, allowed), sampling, dice)
    return token, None if logprobs is None else token_logprob(logprobs, token, sampling.logprobs)


def likeliest(logits: Tensor, rules: Rules, num_generated: int) -> int:
    """Without any rule but bans: what `draw` would take at temperature 0, in fewer passes."""
    token = int(logits.numpy().argmax())  # torch's takes ten times as long
    is_early = num_generated < rules.sampling.min_tokens
    if not (token in rules.banned.numpy() or (is_early and token in rules.stop_ids)):
        return token
    logits = logits.index_fill(0, rules.banned, -torch.inf)
    if is_early:
        logits[rules.stop_ids] = -torch.inf
    return int(logits.numpy().argmax())


def check_finite(logits: Tensor) -> None:
    """Of any shape; in few passes over them, for every token is asked."""
    numbers = logits.flatten()
    if math.isfinite(torch.dot(numbers, numbers)):
        return
    if not torch.isfinite(numbers).all():  # else they are only large
        raise NotFiniteError("the model's logits are not finite")


def penalise(scores: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Tokens already in prompt or answer become less likely (CTRL, section 4.1)."""
    ids = torch.tensor(sorted(seen))
    found = scores[ids]
    scores[ids] = torch.where(found < 0, found * penalty, found / penalty)
    return scores


def repeated_next(history: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` already in `history`."""
    tail = history[len(history) - size + 1 :]
    starts = range(len(history) - size + 1)
    return [history[i + size - 1] for i in starts if history[i : i + size - 1] == tail]


def draw(logits: Tensor, sampling: Sampling, dice: random.Random) -> int:
    most = logits.max()
    if most == -torch.inf:
        raise NothingAllowedError(
            "no token may come next: min_tokens, no_repeat_ngram_size and constraint together "
            "exclude all of them; loosen one",
            code="nothing_allowed",
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = ((logits - most) / sampling.temperature).softmax(-1)
    ranked, order = probabilities.sort(descending=True, stable=True)
    ranked = ranked * allowed_ranks(ranked, sampling)
    reached = ranked.cumsum(0)
    drawn = dice.random() * float(reached[-1])
    return int(order[int(torch.searchsorted(reached, drawn, right=True).clamp(max=len(order) - 1))])


def allowed_ranks(ranked: Tensor, sampling: Sampling) -> Tensor:
    """Of probabilities in falling order, those that top-k, top-p and min-p leave."""
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if 0 < sampling.top_k < len(ranked):
        keep[sampling.top_k :] = False
    if sampling.top_p < 1:
        before = ranked.cumsum(0) - ranked
        keep &= before < sampling.top_p
    if sampling.min_p:
        keep &= ranked >= sampling.min_p * ranked[0]
    keep[0] = True
    return keep


def token_logprob(logprobs: Tensor, token: int, num_top: int | None) -> TokenLogprob:
    """`logprobs` [vocab] and the `num_top` largest of them."""
    return TokenLogprob(token, float(logprobs[token]), largest(logprobs, num_top or 0))


def largest(logprobs: Tensor, num: int) -> list[tuple[int, float]]:
    """(id, log-probability), the likeliest first."""
    top = logprobs.topk(min(num, len(logprobs)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
