"""CIDEr-D of captions (Vedantam et al. 2015), equal to `Cider` of the official pycocoevalcap.

Words come from `ptb.words`; n-grams of 1 to 4 words weighted by how rare they are among the
references of all pictures, and a Gaussian penalty on the difference in length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flamingo_eval.metrics.ptb import words

LONGEST = 4
SIGMA = 6.0

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """Weights of the n-grams of each length, their norm, and the length of the caption."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each prediction, 0 to 10; published figures are 100 times their mean.

    Depends on all pictures together, which decide how rare a word is: of a single picture it is 0.
    Raises ValueError where a picture has no reference.
    """
    if not all(references):
        raise ValueError("every picture needs a reference caption")
    counted = [[_ngrams(words(text)) for text in some] for some in references]
    frequency = Counter(ngram for some in counted for ngram in set().union(*some))
    num = math.log(len(references)) if references else 0.0

    def vector(ngrams: Counter[Ngram]) -> _Vector:
        return _vector(ngrams, frequency, num)

    said = [vector(_ngrams(words(text))) for text in predictions]
    known = [[vector(ngrams) for ngrams in some] for some in counted]
    return [
        10 * sum(_similarity(one, other) for other in some) / len(some)
        for one, some in zip(said, known, strict=True)
    ]


def _ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    lengths = range(1, LONGEST + 1)
    return Counter(tuple(tokens[i : i + n]) for n in lengths for i in range(len(tokens) - n + 1))


def _vector(ngrams: Counter[Ngram], frequency: Counter[Ngram], num: float) -> _Vector:
    weights: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
    length = 0
    for ngram, count in ngrams.items():
        weights[len(ngram) - 1][ngram] = count * (num - math.log(max(1, frequency[ngram])))
        length += count if len(ngram) == 2 else 0  # the official tool counts pairs of words
    norms = [math.sqrt(sum(value**2 for value in one.values())) for one in weights]
    return _Vector(weights, norms, length)


def _similarity(said: _Vector, known: _Vector) -> float:
    """The mean over n of the clipped cosines, less for another length."""
    penalty = math.exp(-((said.length - known.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for mine, theirs, a, b in zip(
        said.weights, known.weights, said.norms, known.norms, strict=True
    ):
        product = sum(
            min(value, theirs.get(n, 0.0)) * theirs.get(n, 0.0) for n, value in mine.items()
        )
        total += product / (a * b) if a and b else product
    return penalty * total / LONGEST
