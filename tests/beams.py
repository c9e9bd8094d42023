"""The slow way to search with beams: the whole sequence of every live beam, at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from flamingo_server.engine.beam import BeamSearch, Hypothesis

LogProbs = Callable[[list[tuple[int, ...]]], Tensor]
"""What beams generated so far → log-probabilities [beams, vocab] of their next tokens."""


def finished(search: BeamSearch, log_probs: LogProbs) -> list[Hypothesis]:
    while not search.is_done:
        search.step(log_probs([beam.token_ids for beam in search.live]))
    return search.results()


def remembered(log_probs: LogProbs) -> LogProbs:
    """Asks once for each beam: searches of one prompt meet the same ones again and again."""
    rows: dict[tuple[int, ...], Tensor] = {}

    def recall(beams: list[tuple[int, ...]]) -> Tensor:
        new = [beam for beam in beams if beam not in rows]
        if new:
            rows.update(zip(new, log_probs(new), strict=True))
        return torch.stack([rows[beam] for beam in beams])

    return recall


def processed(
    log_probs: LogProbs,
    prompt: Sequence[int],
    stop_ids: list[int],
    min_new_tokens: int = 0,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
) -> LogProbs:
    """With the processors of transformers on the log-probabilities, where its beam search has them.

    They see the prompt with the padding of its batch.
    """
    processors: list[Any] = [hf.RepetitionPenaltyLogitsProcessor(repetition_penalty)]
    if no_repeat_ngram_size:
        processors.append(hf.NoRepeatNGramLogitsProcessor(no_repeat_ngram_size))
    processors.append(
        hf.MinNewTokensLengthLogitsProcessor(len(prompt), min_new_tokens, torch.tensor(stop_ids))
    )

    def process(beams: list[tuple[int, ...]]) -> Tensor:
        ids, scores = torch.tensor([[*prompt, *beam] for beam in beams]), log_probs(beams)
        for processor in processors:
            scores = processor(ids, scores)
        return scores

    return process
