"""What the engine works on: a request, its sequences, and the events that answer it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .detokenize import Detokenizer

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop. Temperature 0 is greedy."""

    max_tokens: int = 64
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None


@dataclass(frozen=True, eq=False)
class Media:
    """Decoded pixels [T, H, W, 3] uint8 and the digest that names them in every cache."""

    pixels: NDArray[np.uint8]
    digest: str


@dataclass(frozen=True)
class Prompt:
    """Token ids, the number of the media each token sees (-1: none), and the media in order.

    `generated_media` is the one that generated tokens see; without it, what the last token sees.
    """

    token_ids: list[int]
    media_index: list[int]
    media: list[Media]
    generated_media: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token and the `top` most likely ones, as (id, log-probability)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    media: int
    cached_media: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds; `ttft_ms` from submission to the first token."""

    queue_ms: float
    media_ms: float
    prefill_ms: float
    decode_ms: float
    ttft_ms: float


@dataclass(frozen=True)
class Started:
    usage: Usage


@dataclass(frozen=True)
class Text:
    """Text that will not change any more, and the tokens that are now spoken for."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True)
class Finished:
    index: int
    finish_reason: FinishReason
    score: float | None


@dataclass(frozen=True)
class Ended:
    usage: Usage
    timings: Timings


Event = Started | Text | Finished | Ended | Exception
"""An exception travels the same road as tokens, and ends the request."""


@dataclass(eq=False)
class Request:
    """One prompt and the `sampling.n` sequences that continue it. Equal to itself alone.

    `deliver` is called on the engine thread with each event, in order, and never raises.
    """

    id: str
    prompt: Prompt
    sampling: Sampling
    deliver: Callable[[Event], None]
    priority: int = 0
    deadline: float | None = None  # on the monotonic clock
    media_ms: float = 0.0
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    first_token: float | None = None
    cached_media: int = 0
    slots: list[int] = field(default_factory=list)  # one media slot per media of the prompt
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return all(sequence.is_finished for sequence in self.sequences)

    @property
    def has_expired(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.prompt.token_ids),
            completion_tokens=sum(len(s.generated) for s in self.sequences),
            cached_prompt_tokens=0,
            media=len(self.prompt.media),
            cached_media=self.cached_media,
        )

    def timings(self) -> Timings:
        now = time.monotonic()
        scheduled, first = self.scheduled or now, self.first_token or now

        def ms(since: float, until: float) -> float:
            return round((until - since) * 1000, 3)

        return Timings(
            queue_ms=ms(self.arrived, scheduled),
            media_ms=round(self.media_ms, 3),
            prefill_ms=ms(scheduled, first),
            decode_ms=ms(first, now),
            ttft_ms=ms(self.arrived, first),
        )


@dataclass(eq=False)
class Sequence:
    """One continuation: its cache row, its tokens, its own random numbers."""

    request: Request
    index: int
    detokenizer: Detokenizer
    random: random.Random
    row: int = -1
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_sent: int = 0  # of `generated`, how many an event has carried
    finish_reason: FinishReason | None = None

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt.token_ids) + len(self.generated)

    @property
    def last_slot(self) -> int:
        """The media slot that every generated token sees, -1 for none."""
        prompt = self.request.prompt
        seen = prompt.generated_media
        seen = prompt.media_index[-1] if seen is None else seen
        return self.request.slots[seen] if seen >= 0 else -1

    @property
    def seen_slots(self) -> list[int]:
        """The media slots of the prompt up to its last token's, for a model that looks at all."""
        return self.request.slots[: self.request.prompt.media_index[-1] + 1]

    def take_unsent(self) -> tuple[list[int], list[TokenLogprob] | None]:
        ids = self.generated[self.num_sent :]
        logprobs = (
            self.logprobs[self.num_sent :] if self.request.sampling.logprobs is not None else None
        )
        self.num_sent = len(self.generated)
        return ids, logprobs
