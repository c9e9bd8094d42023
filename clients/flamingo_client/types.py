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

    `logprobs` is as the server sent it, None if not asked for; `score` is a beam's.
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
    """A whole answer: `n` choices, in the order of their index.

    `prompt_logprobs` is as the server sent it, None if not asked for.
    """

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    prompt_logprobs: Json = None

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
            prompt_logprobs=fields.json("prompt_logprobs"),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate and its log-likelihood: `sum` over its tokens, and `mean` of one.

    `score` is what ranks it, `probability` the softmax of that over all candidates; `index` is its
    place in the request.
    """

    index: int
    text: str
    sum: float
    mean: float
    score: float
    probability: float

    @classmethod
    def from_fields(cls, fields: Fields) -> "Candidate":
        return cls(
            index=fields.whole("index"),
            text=fields.text("text"),
            sum=fields.number("sum"),
            mean=fields.number("mean"),
            score=fields.number("score"),
            probability=fields.number("probability"),
        )


@dataclass(frozen=True, slots=True)
class Classification:
    """All candidates, the likeliest first."""

    id: str
    model: str
    candidates: tuple[Candidate, ...]
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The likeliest candidate."""
        return self.candidates[0].text

    @classmethod
    def from_fields(cls, fields: Fields) -> "Classification":
        return cls(
            id=fields.text("id"),
            model=fields.text("model"),
            candidates=tuple(Candidate.from_fields(one) for one in fields.children("candidates")),
            usage=Usage.from_fields(fields.child("usage")),
            timings=Timings.from_fields(fields.child("timings")),
        )


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a continuation, and its log-probability behind all before it."""

    token_id: int
    token: str
    logprob: float

    @classmethod
    def from_fields(cls, fields: Fields) -> "ScoredToken":
        return cls(
            token_id=fields.whole("token_id"),
            token=fields.text("token"),
            logprob=fields.number("logprob"),
        )


@dataclass(frozen=True, slots=True)
class Continuation:
    """A continuation, token by token; `sum` and `mean` are of their log-probabilities."""

    index: int
    text: str
    sum: float
    mean: float
    tokens: tuple[ScoredToken, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> "Continuation":
        return cls(
            index=fields.whole("index"),
            text=fields.text("text"),
            sum=fields.number("sum"),
            mean=fields.number("mean"),
            tokens=tuple(ScoredToken.from_fields(token) for token in fields.children("tokens")),
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """All continuations, in the order of the request."""

    id: str
    model: str
    continuations: tuple[Continuation, ...]
    usage: Usage
    timings: Timings

    @classmethod
    def from_fields(cls, fields: Fields) -> "Scores":
        found = fields.children("continuations")
        return cls(
            id=fields.text("id"),
            model=fields.text("model"),
            continuations=tuple(Continuation.from_fields(one) for one in found),
            usage=Usage.from_fields(fields.child("usage")),
            timings=Timings.from_fields(fields.child("timings")),
        )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Of each picture or film, in the order of the request, its features: a vector of length 1.

    Their products are cosines: of a picture with itself 1, the larger the more alike.
    """

    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage

    @classmethod
    def from_fields(cls, fields: Fields) -> "Embeddings":
        return cls(
            model=fields.text("model"),
            vectors=tuple(one.floats("embedding") for one in fields.children("data")),
            usage=Usage.from_fields(fields.child("usage")),
        )


@dataclass(frozen=True, slots=True)
class Start:
    """The request was admitted; `usage` and `prompt_logprobs` are those of its prompt."""

    id: str
    model: str
    usage: Usage
    prompt_logprobs: Json = None

    @classmethod
    def from_fields(cls, fields: Fields) -> "Start":
        return cls(
            id=fields.text("id"),
            model=fields.text("model"),
            usage=Usage.from_fields(fields.child("usage")),
            prompt_logprobs=fields.json("prompt_logprobs"),
        )


@dataclass(frozen=True, slots=True)
class Adapter:
    """A fine-tuned adapter that the server has loaded.

    `digest` names what it computes, `requests` are those under way, and `card` is what training
    wrote of it: its base, config, data and metrics.
    """

    name: str
    digest: str
    parameters: int = 0
    requests: int = 0
    card: Json = None

    @classmethod
    def from_fields(cls, fields: Fields) -> "Adapter":
        return cls(
            name=fields.text("name"),
            digest=fields.text("digest"),
            parameters=fields.whole("parameters", 0),
            requests=fields.whole("requests", 0),
            card=fields.json("card"),
        )


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
