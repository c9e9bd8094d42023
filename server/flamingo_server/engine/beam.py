"""Beam search over token ids: which hypotheses live, which have ended, which can still win.

It knows log-probabilities and nothing of models, caches or text. The search is that of
`GenerationMixin._beam_search` in transformers 5.23, one prompt at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_LENGTH_PENALTY = 32.0  # so that no length to this power overflows


@dataclass(frozen=True)
class BeamOptions:
    """How wide to search, when to stop and how hypotheses of different lengths compare.

    A hypothesis scores its summed log-probability / length**`length_penalty`. By `score_rule`
    "generated" the length is that of the answer with its end token (transformers since 4.36), by
    "total" that of prompt and answer without the end token (before 4.36).
    `early_stopping`, once `num_beams` hypotheses have ended: True stops; False stops when the best
    live beam, ended now, would be no better than the worst of them; "never" when it could not
    become better at any length.
    Raises ValueError on values out of range.
    """

    num_beams: int
    n: int = 1
    max_tokens: int = 64
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    score_rule: Literal["generated", "total"] = "generated"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.num_beams:
            raise ValueError(f"n must be from 1 to num_beams ({self.num_beams}), got {self.n}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not abs(self.length_penalty) <= MAX_LENGTH_PENALTY:
            raise ValueError(
                f"length_penalty must be within ±{MAX_LENGTH_PENALTY:g}, got {self.length_penalty}"
            )
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(f"early_stopping is true, false or 'never': {self.early_stopping!r}")
        if self.score_rule not in ("generated", "total"):
            raise ValueError(f"score_rule is 'generated' or 'total': {self.score_rule!r}")


@dataclass(frozen=True)
class Beam:
    """A live hypothesis: what it generated so far and the sum of its log-probabilities."""

    token_ids: tuple[int, ...] = ()
    score: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """An ended one: its tokens with the one that ended it, and the score it is ranked by."""

    token_ids: tuple[int, ...]
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Candidate:
    """A live beam, by its index, and one more token."""

    parent: int
    beam: Beam
    ended: Literal["stop", "length"] | None


def never(token_ids: Sequence[int]) -> bool:
    return False


class BeamSearch:
    """`step` with the scores of the live beams until `is_done`; then `results`.

    `committed` is the start that every hypothesis shares which can still become `results()[0]`: it
    only grows, and in the end is all of that hypothesis. A live beam counts as long as its sum,
    over the length that flatters it most, beats the best ended hypothesis: log-probabilities are
    at most 0, so no continuation scores more. Ties go to what ended first.

    Token ids are committed without regard to text. A stop string that may be starting is for the
    detokenizer to hold back; `ends_text` tells when a hypothesis' text has come to hold a whole
    one, which ends it as an end token does. It sees all that was generated, and so must find the
    string also where it begins in an earlier token.
    """

    def __init__(
        self,
        options: BeamOptions,
        prompt_length: int,
        stop_ids: Collection[int],
        ends_text: Callable[[Sequence[int]], bool] = never,
    ) -> None:
        self.options = options
        self.prompt_length = prompt_length
        self.stop_ids = frozenset(stop_ids)
        self.ends_text = ends_text
        self.live = [Beam()]
        self.ended: list[Hypothesis] = []  # the `num_beams` best, best first
        self.committed: tuple[int, ...] = ()
        self.is_done = False

    def step(self, scores: Tensor) -> list[int]:
        """Continue each live beam by its best tokens, of all continuations keep the best.

        `scores` [len(live), vocab] are log-probabilities, at most 0, -inf for a banned token.
        Returns the parent of each new live beam: its index among the old ones. None is left when
        the search is done. Raises ValueError when a score is not a number.
        """
        going: list[Candidate] = []
        ended: list[Hypothesis] = []
        width = self.options.num_beams
        for rank, candidate in enumerate(self.candidates(scores)):
            if len(going) == width:
                break
            if candidate.ended is None:
                going.append(candidate)
            elif rank < width:  # what is behind the first `num_beams` may live on, but not end
                ended.append(self.hypothesis(candidate.beam, candidate.ended))
        self.update(going, ended)
        return [candidate.parent for candidate in going[: len(self.live)]]

    def update(self, going: list[Candidate], ended: list[Hypothesis]) -> None:
        self.ended = best_first([*self.ended, *ended])[: self.options.num_beams]
        if not going and not self.ended:  # every token is banned: the beams end where they are
            self.ended = self.ranked(self.live)
        self.live = [candidate.beam for candidate in going]
        self.is_done = self.is_over()
        if self.is_done:
            self.live = []
        self.commit()

    @property
    def num_candidates(self) -> int:
        return max(2, 1 + len(self.stop_ids)) * self.options.num_beams

    def candidates(self, scores: Tensor) -> Iterator[Candidate]:
        """Best first, so many that `num_beams` of them do not end by a token."""
        num_kept = self.num_candidates
        best = scores.topk(min(num_kept, scores.shape[-1]))  # of each beam: cheaper than of all
        sums = torch.tensor([[beam.score] for beam in self.live], dtype=scores.dtype)
        totals, order = (best.values.cpu() + sums).flatten().sort(descending=True, stable=True)
        token_ids = best.indices.flatten().tolist()
        for total, index in zip(totals[:num_kept].tolist(), order.tolist(), strict=False):
            if not total < math.inf:
                raise ValueError("the scores are not log-probabilities")
            if total == -math.inf:
                return
            parent = index // best.indices.shape[-1]
            beam = Beam((*self.live[parent].token_ids, token_ids[index]), total)
            yield Candidate(parent, beam, self.end_of(beam))

    def end_of(self, beam: Beam) -> Literal["stop", "length"] | None:
        if beam.token_ids[-1] in self.stop_ids or self.ends_text(beam.token_ids):
            return "stop"
        return "length" if len(beam.token_ids) == self.options.max_tokens else None

    def hypothesis(self, beam: Beam, ended: Literal["stop", "length"]) -> Hypothesis:
        length = self.length(len(beam.token_ids))
        if ended == "stop" and self.options.score_rule == "total":
            length -= 1
        return Hypothesis(beam.token_ids, self.normalised(beam.score, length), ended)

    def ranked(self, beams: list[Beam]) -> list[Hypothesis]:
        return best_first([self.hypothesis(beam, "length") for beam in beams])

    def length(self, num_tokens: int) -> int:
        return num_tokens + (self.prompt_length if self.options.score_rule == "total" else 0)

    def normalised(self, total: float, length: int) -> float:
        return float(total / max(length, 1) ** self.options.length_penalty)

    def attainable(self, beam: Beam) -> float:
        """No continuation of a live beam scores more, nor does the beam if it ended now."""
        num_tokens = len(beam.token_ids)
        if self.options.length_penalty > 0:
            num_tokens = self.options.max_tokens
        return self.normalised(beam.score, self.length(num_tokens))

    def is_over(self) -> bool:
        if not self.live:
            return True
        if len(self.ended) < self.options.num_beams:
            return False
        # one beam is greedy search, whatever `early_stopping` says
        if self.options.early_stopping is True or self.options.num_beams == 1:
            return True
        best = self.live[0]
        if self.options.early_stopping == "never":
            reach = self.attainable(best)
        else:
            reach = self.normalised(best.score, self.length(len(best.token_ids)))
        return reach <= self.ended[-1].score

    def commit(self) -> None:
        """All that can win share what was committed: only what follows is compared."""
        rows = self.contenders()
        position = len(self.committed)
        shortest = min(map(len, rows))
        while position < shortest and len({row[position] for row in rows}) == 1:
            position += 1
        self.committed = rows[0][:position]

    def contenders(self) -> list[tuple[int, ...]]:
        """The tokens of every hypothesis that can still become the first result."""
        if not self.ended:
            return [beam.token_ids for beam in self.live]
        best = self.ended[0]
        able = [beam.token_ids for beam in self.live if self.attainable(beam) > best.score]
        return [best.token_ids, *able]

    @property
    def best(self) -> tuple[int, ...]:
        """The tokens of the best hypothesis now: they may be taken back, `committed` may not."""
        return self.results()[0].token_ids

    def results(self) -> list[Hypothesis]:
        """The `n` best, best first; fewer where bans leave fewer. Of a search that is not done,
        its live beams count as ended by length.
        """
        return best_first([*self.ended, *self.ranked(self.live)])[: self.options.n]


def best_first(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)
