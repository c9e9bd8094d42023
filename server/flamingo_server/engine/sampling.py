"""Logits → the next token of each sequence. Each has its own seeded random numbers, so that what
else is in the batch never changes what it draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .request import Sampling, Sequence, TokenLogprob


class NotFiniteError(Exception):
    """The model gave logits that are not numbers."""


def choose_token(
    logits: Tensor, sequence: Sequence, banned: list[int], stop_ids: list[int]
) -> tuple[int, TokenLogprob | None]:
    """One row of logits [vocab] → a token, and its log-probability if asked for.

    `banned` tokens are never chosen; `stop_ids` not before `min_tokens`. Log-probabilities are of
    the model's own distribution, before any sampling rule. Raises NotFiniteError.
    """
    if not torch.isfinite(logits).all():
        raise NotFiniteError("the model's logits are not finite")
    sampling = sequence.request.sampling
    logits = logits.to(torch.float64, copy=True)  # so that no temperature overflows
    logits[banned] = -torch.inf
    logprobs = logits.log_softmax(-1) if sampling.logprobs is not None else None
    if len(sequence.generated) < sampling.min_tokens:
        logits[stop_ids] = -torch.inf
    token = draw(apply_rules(logits, sequence), sampling, sequence)
    return token, None if logprobs is None else token_logprob(logprobs, token, sampling)


def apply_rules(logits: Tensor, sequence: Sequence) -> Tensor:
    sampling = sequence.request.sampling
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, sequence, sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size:
        history = [*sequence.request.prompt.token_ids, *sequence.generated]
        logits[repeated_next(history, sampling.no_repeat_ngram_size)] = -torch.inf
    return logits


def penalise(logits: Tensor, sequence: Sequence, penalty: float) -> Tensor:
    """Tokens already in prompt or answer become less likely (CTRL, section 4.1)."""
    seen = torch.tensor(sorted({*sequence.request.prompt.token_ids, *sequence.generated}))
    scores = logits[seen]
    logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits


def repeated_next(history: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` already in `history`."""
    tail = history[len(history) - size + 1 :]
    starts = range(len(history) - size + 1)
    return [history[i + size - 1] for i in starts if history[i : i + size - 1] == tail]


def draw(logits: Tensor, sampling: Sampling, sequence: Sequence) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = ((logits - logits.max()) / sampling.temperature).softmax(-1)
    ranked, order = probabilities.sort(descending=True, stable=True)
    ranked = ranked * allowed(ranked, sampling)
    reached = ranked.cumsum(0)
    drawn = sequence.random.random() * float(reached[-1])
    return int(order[int(torch.searchsorted(reached, drawn, right=True).clamp(max=len(order) - 1))])


def allowed(ranked: Tensor, sampling: Sampling) -> Tensor:
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


def token_logprob(logprobs: Tensor, token: int, sampling: Sampling) -> TokenLogprob:
    top = logprobs.topk(min(sampling.logprobs or 0, len(logprobs)))
    pairs = [(int(i), float(v)) for v, i in zip(top.values, top.indices, strict=True)]
    return TokenLogprob(token, float(logprobs[token]), pairs)
