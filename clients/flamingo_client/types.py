"""What the server answers. Fields that a newer server adds are ignored."""

from dataclasses import dataclass
from typing import TypeAlias

from flamingo_client._json import Fields, Json


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost: tokens, and pictures and films (`media`), with the part from caches."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    media: int = 0
    cached_media: int = 0

    @classmethod
    def from_fields(cls, fields: Fields) -> "Usage":
        return cls(
            prompt_tokens=fields.whole("prompt_tokens", 0),
            completion_tokens=fields.whole("completion_tokens", 0),
            cached_prompt_tokens=fields.whole("cached_prompt_tokens", 0),
            media=fields.whole("media", 0),
            cached_media=fields.whole("cached_media", 0),
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in milliseconds; a phase that did not happen took 0."""

    queue_ms: float = 0.0
    media_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    ttft_ms: float = 0.0

    @classmethod
    def from_fields(cls, fields: Fields) -> "Timings":
        return cls(
            queue_ms=fields.number("queue_ms"),
            media_ms=fields.number("media_ms"),
            prefill_ms=fields.number("prefill_ms"),
            decode_ms=fields.number("decode_ms"),
            ttft_ms=fields.number("ttft_ms"),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `finish_reason` is stop, length, cancelled, timeout or error.

    `logprobs` is as the server sent it, None if not asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: Json = None
    score: float | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> "Choice":
        return cls(
            index=fields.whole("index"),
            text=fields.text("text"),
            token_ids=fields.wholes("token_ids"),
            finish_reason=fields.text("finish_reason"),
            logprobs=fields.json("logprobs"),
            score=fields.maybe_number("score"),
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer: `n` choices, in the order of their index."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @classmethod
    def from_fields(cls, fields: Fields) -> "Generation":
        return cls(
            id=fields.text("id"),
            model=fields.text("model"),
            choices=tuple(Choice.from_fields(choice) for choice in fields.children("choices")),
            usage=Usage.from_fields(fields.child("usage")),
            timings=Timings.from_fields(fields.child("timings")),
        )


@dataclass(frozen=True, slots=True)
class Start:
    """The request was admitted; `usage` is that of its prompt."""

    id: str
    model: str
    usage: Usage

    @classmethod
    def from_fields(cls, fields: Fields) -> "Start":
        usage = Usage.from_fields(fields.child("usage"))
        return cls(id=fields.text("id"), model=fields.text("model"), usage=usage)


@dataclass(frozen=True, slots=True)
class Token:
    """Text of choice `index` that will not change any more. Joined, the texts are the answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: Json = None

    @classmethod
    def from_fields(cls, fields: Fields) -> "Token":
        return cls(
            index=fields.whole("index"),
            text=fields.text("text"),
            token_ids=fields.wholes("token_ids"),
            logprobs=fields.json("logprobs"),
        )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The best beam of choice `index` now; the next one may take its text back."""

    index: int
    text: str

    @classmethod
    def from_fields(cls, fields: Fields) -> "Hypothesis":
        return cls(index=fields.whole("index"), text=fields.text("text"))


@dataclass(frozen=True, slots=True)
class Done:
    """Choice `index` ended."""

    index: int
    finish_reason: str
    score: float | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> "Done":
        return cls(
            index=fields.whole("index"),
            finish_reason=fields.text("finish_reason"),
            score=fields.maybe_number("score"),
        )


@dataclass(frozen=True, slots=True)
class End:
    """Every choice ended: the last event of a stream that went well."""

    usage: Usage
    timings: Timings

    @classmethod
    def from_fields(cls, fields: Fields) -> "End":
        usage = Usage.from_fields(fields.child("usage"))
        return cls(usage=usage, timings=Timings.from_fields(fields.child("timings")))


Event: TypeAlias = Start | Token | Hypothesis | Done | End
