"""What `/v1/generate` takes and gives."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import BadRequest, OutOfRange
from .prompt import Characters, RunRequest, Wire


class ConstraintRule(Wire):
    """What the whole answer must be: exactly one of these."""

    choices: list[Characters] | None = None
    regex: Characters | None = Field(None, description="without look-around and back-references")
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def check_one(self) -> ConstraintRule:
        if sum(rule is not None for rule in (self.choices, self.regex, self.json_schema)) != 1:
            message = "a constraint has exactly one of choices, regex and json_schema"
            raise BadRequest(message, param="constraint", code="bad_constraint")
        return self

    @property
    def kind(self) -> Literal["choices", "regex", "json_schema"]:
        if self.choices is not None:
            return "choices"
        return "json_schema" if self.regex is None else "regex"

    @property
    def value(self) -> str:
        """The pattern, or the JSON of the others."""
        if self.regex is not None:
            return self.regex
        try:
            return json.dumps(self.json_schema if self.choices is None else self.choices)
        except RecursionError:
            message = "the constraint is nested too deeply: make it flat"
            raise BadRequest(message, param="constraint", code="bad_constraint") from None


BEAM_FIELDS = ("length_penalty", "early_stopping", "score_rule", "stream_hypotheses")


class GenerateRequest(RunRequest):
    """A prompt, in the order the model sees it, and how to continue it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": [{"type": "text", "text": "This is a"}], "max_tokens": 8}]
        }
    )

    max_tokens: int | None = Field(
        None, ge=1, description="default: 64, or what the context leaves"
    )
    min_tokens: int = Field(0, ge=0)
    temperature: float = Field(0.0, ge=0, le=100, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: no limit")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    no_repeat_ngram_size: int = Field(0, ge=0, le=64)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[str] = Field(default_factory=list, max_length=16)
    n: int = Field(1, ge=1)
    num_beams: int = Field(1, ge=1, description="above 1: beam search, with temperature 0")
    length_penalty: float = Field(
        1.0,
        ge=-32,
        le=32,
        description="a hypothesis scores sum of log-probabilities / length**this",
    )
    early_stopping: Literal[True, False, "never"] = Field(
        False, description="of beams, once num_beams have ended: see transformers"
    )
    score_rule: Literal["generated", "total"] = Field(
        "generated", description="the length that counts: the answer's, or with the prompt"
    )
    stream_hypotheses: bool = Field(
        False, description="also stream the best hypothesis now, which may be taken back"
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="top-k per generated token")
    prompt_logprobs: int | None = Field(None, ge=0, le=20, description="top-k per prompt token")
    constraint: ConstraintRule | None = None
    stream: bool = False

    @model_validator(mode="after")
    def check_beams(self) -> GenerateRequest:
        if self.num_beams == 1:
            self.refuse_beam_fields()
        elif self.temperature > 0:
            message = "beam search draws nothing: set temperature to 0, or num_beams to 1 with n"
            raise OutOfRange(message, param="temperature", code="beams_and_temperature")
        elif self.n > self.num_beams:
            message = f"n may be at most num_beams, {self.num_beams}: {self.num_beams} beams end"
            raise OutOfRange(message, param="n", code="too_many_choices")
        elif self.prompt_logprobs is not None:
            message = "prompt_logprobs come without beams: ask for them with num_beams 1"
            raise OutOfRange(message, param="prompt_logprobs", code="beams_and_prompt_logprobs")
        return self

    def refuse_beam_fields(self) -> None:
        for name in BEAM_FIELDS:
            if getattr(self, name) != type(self).model_fields[name].default:
                message = f"{name} is for beam search: set num_beams above 1, or leave it out"
                raise OutOfRange(message, param=name, code="needs_beams")

    @field_validator("stop", mode="before")
    @classmethod
    def one_stop(cls, value: object) -> object:
        """A lone string is a list of one."""
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def no_empty_stop(cls, value: list[str]) -> list[str]:
        if any(not text or len(text) > 256 for text in value):
            raise ValueError("each stop string must have 1 to 256 characters")
        return value


class TopToken(BaseModel):
    token_id: int
    token: str
    logprob: float


class TokenLogprob(TopToken):
    top: list[TopToken]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    media: int
    cached_media: int


class Timings(BaseModel):
    queue_ms: float
    media_ms: float
    prefill_ms: float
    decode_ms: float
    ttft_ms: float


class Choice(BaseModel):
    index: int
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "cancelled", "timeout", "error"]
    logprobs: list[TokenLogprob] | None
    score: float | None


class GenerateResponse(BaseModel):
    id: str
    model: str
    choices: list[Choice]
    prompt_logprobs: list[TokenLogprob | None] | None = Field(
        None, description="only if asked for; the first token has none"
    )
    usage: Usage
    timings: Timings
