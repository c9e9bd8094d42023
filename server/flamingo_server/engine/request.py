"""What the engine works on: a request, its sequences, and the events that answer it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from flamingo_model.adapted import Adapted

    from .blocks import Node, Places
    from .choice import Choice
    from .constraints import Grammar

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop. Temperature 0 is greedy.

    With `num_beams` above 1 it is beam search, as transformers has it (`BeamOptions`).
    """

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
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    score_rule: Literal["generated", "total"] = "generated"
    stream_hypotheses: bool = False

    @property
    def width(self) -> int:
        """Sequences that run side by side."""
        return max(self.n, self.num_beams)


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """What a request runs with in place of the base model. Equal to itself alone.

    No prefix is shared between two `generation`s: a name that is loaded again has another.
    """

    name: str
    generation: int
    adapted: Adapted

    def own(self, prompt: Prompt) -> Prompt:
        """The prompt whose pictures are cached apart, if they look different to this adapter."""
        if not self.adapted.has_own_pictures:
            return prompt
        tag = self.adapted.digest[:32]
        media = [Media(m.pixels, f"{m.digest}-{tag}", self) for m in prompt.media]
        return replace(prompt, media=media)


@dataclass(frozen=True, eq=False)
class Media:
    """Decoded pixels [T, H, W, 3] uint8 and the digest that names them in every cache.

    They are encoded by `adapter`'s parts, if by any.
    """

    pixels: NDArray[np.uint8]
    digest: str
    adapter: LoadedAdapter | None = None


@dataclass(frozen=True)
class Prompt:
    """Token ids, the number of the media each token sees (-1: none), and the media in order.

    `generated_media` is the one that generated tokens see; without it, what the last token sees.
    `salt` keeps the prefixes of tenants apart: none is found under another salt.
    """

    token_ids: list[int]
    media_index: list[int]
    media: list[Media]
    generated_media: int | None = None
    salt: str | None = None

    @property
    def later_media(self) -> int:
        """The media that tokens after the prompt see, -1 for none."""
        return self.media_index[-1] if self.generated_media is None else self.generated_media

    def media_at(self, place: int) -> int:
        return self.media_index[place] if place < len(self.media_index) else self.later_media


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the `top` most likely ones in its place, as (id, log-probability)."""

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
    """The prompt is in the cache; of its first token there is no log-probability."""

    usage: Usage
    prompt_logprobs: list[TokenLogprob | None] | None = None


@dataclass(frozen=True)
class Text:
    """Text that will not change any more, and the tokens that are now spoken for."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True)
class Draft:
    """The best hypothesis of a beam search now: all its text, which may be taken back."""

    index: int
    text: str


@dataclass(frozen=True)
class Finished:
    index: int
    finish_reason: FinishReason
    score: float | None


@dataclass(frozen=True)
class Scored:
    """Of each candidate the log-probability of each of its tokens, in the order they came."""

    logprobs: list[list[float]]


@dataclass(frozen=True)
class Embedded:
    """Of each media its features, of length 1; `num_cached` of them were known before."""

    vectors: list[list[float]]
    num_cached: int


@dataclass(frozen=True)
class Ended:
    """`commit_lag`: of a beam search, the most tokens its best hypothesis had beyond the committed
    ones after a step."""

    usage: Usage
    timings: Timings
    commit_lag: int | None = None


Event = Started | Text | Draft | Finished | Scored | Embedded | Ended | Exception
"""An exception travels the same road as tokens, and ends the request."""


class Task(ABC):
    """What a request wants of its logits: tokens to sample, beams to follow, candidates to score.

    Whatever it raises ends its request, and no other.
    """

    width: int  # sequences that may run side by side

    @abstractmethod
    def take(self, sequence: Sequence, first: int, logits: Tensor) -> None:
        """`logits` [n, vocab] behind tokens `first`, `first` + 1, ... of one of its sequences."""

    @abstractmethod
    def stop(self, reason: FinishReason) -> None:
        """Ends the request now, with what there is."""


@dataclass(eq=False)
class Request:
    """One prompt, and the sequences and choices that continue it. Equal to itself alone.

    `deliver` is called on the engine thread with each event, in order, and never raises.
    """

    id: str
    prompt: Prompt
    deliver: Callable[[Event], None]
    priority: int = 0
    deadline: float | None = None  # on the monotonic clock
    media_ms: float = 0.0
    sees_all_media: bool = False  # the model's rule
    reuses_prefix: bool = True
    adapter: LoadedAdapter | None = None
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    first_token: float | None = None
    cached_tokens: int = 0
    cached_media: int = 0
    commit_lag: int | None = None  # of a beam search, see `Ended`
    slots: dict[int, int] = field(default_factory=dict)  # of the media it still has to look at
    has_media: bool = False  # all of these slots are filled
    filled: set[int] = field(default_factory=set)  # blocks that it was the first to compute
    sequences: list[Sequence] = field(default_factory=list)  # those that run
    choices: list[Choice] = field(default_factory=list)
    task: Task = field(init=False)

    @property
    def rank(self) -> tuple[int, float]:
        """Who goes first: the smaller."""
        return -self.priority, self.arrived

    @property
    def prefix_root(self) -> Hashable:
        """Prefixes are found by those of the same adapter and salt alone."""
        if self.adapter is None:
            return self.prompt.salt
        return self.adapter.generation, self.prompt.salt

    @property
    def has_expired(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    @cached_property
    def seen(self) -> list[Hashable]:
        """What decides a hidden state beside tokens: the digests each prompt token looks at."""
        return [self.digests(index) for index in self.prompt.media_index]

    @cached_property
    def seen_later(self) -> Hashable:
        return self.digests(self.prompt.later_media)

    def digests(self, index: int) -> Hashable:
        media = self.prompt.media[: index + 1]
        if index < 0 or not self.sees_all_media:
            return media[-1].digest if index >= 0 else None
        return tuple(m.digest for m in media)

    def visible(self, index: int) -> list[int]:
        """The media that a token looks at whose last is number `index`."""
        if index < 0:
            return []
        return list(range(index + 1)) if self.sees_all_media else [index]

    def media_from(self, place: int) -> set[int]:
        """The media that the tokens from `place` on look at, generated ones included."""
        index = {*self.prompt.media_index[place:], self.prompt.later_media}
        return {media for last in index for media in self.visible(last)}

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.prompt.token_ids),
            completion_tokens=sum(len(c.token_ids) for c in self.choices),
            cached_prompt_tokens=self.cached_tokens,
            media=len(self.prompt.media),
            cached_media=self.cached_media,
        )

    def ended(self) -> Ended:
        return Ended(self.usage(), self.timings(), self.commit_lag)

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
    """One hypothesis as the cache knows it: its tokens, and the blocks that hold their keys.

    The first `num_computed` tokens are in the cache. The tokens behind the prompt may be a tree of
    candidates, flattened: `tree` then says which of them each one follows.
    """

    request: Request
    tokens: list[int]
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    node: Node | None = None  # the last block of its own that the prefix tree knows
    num_registered: int = 0  # blocks up to that one
    logits_from: int | None = None  # the first token whose logits are wanted; None: the last
    tree: Tree | None = None

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt.token_ids)

    @property
    def wanted_from(self) -> int:
        return len(self.tokens) - 1 if self.logits_from is None else self.logits_from

    def places(self, begin: int, end: int) -> Places:
        """What the prefix tree compares: each token with the pictures it looks at."""
        seen, later = self.request.seen, self.request.seen_later
        known = range(begin, min(end, len(seen)))
        new = range(max(begin, len(seen)), end)
        return (
            *((self.tokens[i], seen[i]) for i in known),
            *((self.tokens[i], later) for i in new),
        )

    def position(self, place: int) -> int:
        """Where the token stands in its own text."""
        if self.tree is None or place < self.num_prompt:
            return place
        return self.num_prompt + self.tree.depths[place - self.num_prompt]


@dataclass(frozen=True)
class Tree:
    """Tokens behind a prompt, parents first: `parents` are numbers in it, -1 for the prompt."""

    token_ids: list[int]
    parents: list[int]

    @cached_property
    def depths(self) -> list[int]:
        depths = list[int]()
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    def path(self, node: int) -> list[int]:
        """The node and those before it, up to the prompt."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found
