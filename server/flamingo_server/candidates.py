"""Closed-ended questions: the tokens of the candidates, the prompts that are asked, and what their
log-likelihoods say.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from flamingo_model.media import Transform, media_digest

from .engine.request import Media, Prompt
from .errors import BadRequest, OutOfRange, TooLarge
from .prompts import LONGEST_TOKEN

GREY = 128
BLANKS = ("\u2581", "\u0120")  # how tokenizers spell one
AT_ONCE = 100_000  # characters tokenised together: a token takes some hundred bytes meanwhile


@dataclass(frozen=True)
class CandidateLimits:
    """Of one candidate in tokens, and of all of them together."""

    max_length: int
    max_tokens: int


def tokenise(
    tokenizer: Tokenizer, texts: Sequence[str], field: str, limits: CandidateLimits
) -> list[list[int]]:
    """The tokens of each text by itself. `tokenizer` takes special tokens for plain text.

    Raises TooLarge, and BadRequest for a text without a token.
    """
    for number, text in enumerate(texts):
        if len(text) > limits.max_length * LONGEST_TOKEN:
            raise too_long(f"{field}[{number}]", f"{len(text):,} characters", limits)
    found = list[list[int]]()
    num_tokens = 0
    for group in groups(texts):
        for encoding in tokenizer.encode_batch(group, add_special_tokens=False):
            num_tokens += check(encoding.ids, f"{field}[{len(found)}]", limits)
            found.append(encoding.ids)
        if num_tokens > limits.max_tokens:
            raise TooLarge(
                f"{field} have more than {limits.max_tokens:,} tokens together, the most for this "
                "request: send fewer or shorter ones, or a smaller ensemble",
                param=field,
                code="too_many_candidate_tokens",
            )
    return found


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group, size = list[str](), 0
    for text in texts:
        if group and size + len(text) > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    yield group


def check(token_ids: list[int], place: str, limits: CandidateLimits) -> int:
    if not token_ids:
        raise BadRequest(f"{place} has no tokens for this model", param=place, code="no_tokens")
    if len(token_ids) > limits.max_length:
        raise too_long(place, f"{len(token_ids):,} tokens", limits)
    return len(token_ids)


def too_long(place: str, size: str, limits: CandidateLimits) -> TooLarge:
    return TooLarge(
        f"{place} has {size}; after this prompt {limits.max_length:,} tokens are left",
        param=place,
        code="candidate_too_long",
    )


def writes_blank(tokenizer: Tokenizer) -> bool:
    """The tokenizer itself puts a blank before a text, as LLaMA's does."""
    return bool(tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith(BLANKS))


def orders(num: int, wanted: int, seed: int) -> list[tuple[int, ...]]:
    """Different orders of `num` examples, the first as given. Raises OutOfRange."""
    most = math.factorial(min(num, 8))  # more than anyone may ask for
    if wanted > most:
        raise OutOfRange(
            f"{num} examples have {most:,} orders: ensemble may be at most that",
            param="ensemble",
            code="too_many_orders",
        )
    found, dice = [tuple(range(num))], random.Random(seed)
    while len(found) < wanted:
        order = tuple(dice.sample(range(num), num))
        if order not in found:
            found.append(order)
    return found


def blanked(prompt: Prompt, transform: Transform) -> Prompt:
    """The same with a grey picture, or film, in place of the last."""
    *others, last = prompt.media
    pixels = np.full_like(last.pixels, GREY)
    return replace(prompt, media=[*others, Media(pixels, media_digest(pixels, transform))])


@dataclass(frozen=True)
class Likelihood:
    """Of one candidate: the sum of its tokens' log-probabilities, and their mean."""

    sum: float
    mean: float

    @classmethod
    def of(cls, logprobs: Sequence[float]) -> Likelihood:
        total = math.fsum(logprobs)
        return cls(total, total / len(logprobs))


Scores = list[list[float]]
"""The log-probability of each token of each candidate."""


def averaged(found: Sequence[Scores]) -> list[Likelihood]:
    """Of each candidate the average over prompts, one or more, of its log-likelihoods."""
    likelihoods = [[Likelihood.of(logprobs) for logprobs in scores] for scores in found]
    return [
        Likelihood(
            math.fsum(one.sum for one in of_one) / len(found),
            math.fsum(one.mean for one in of_one) / len(found),
        )
        for of_one in zip(*likelihoods, strict=True)
    ]


def softmax(scores: Sequence[float]) -> list[float]:
    most = max(scores)
    weights = [math.exp(score - most) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
