"""What `/v1/classify` and `/v1/score` take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import BadRequest
from .generate import Timings, Usage
from .prompt import Characters, RunRequest

Texts = Annotated[list[Annotated[Characters, Field(min_length=1)]], Field(min_length=1)]


class ClassifyRequest(RunRequest):
    """Which of the candidates goes on from the prompt best?

    Each is tokenised by itself and read as plain text. Behind a prompt in parts it stands as it is
    written, blanks included; behind a task, as the task's template writes an answer. One that comes
    twice is scored twice.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": [{"type": "text", "text": "This is a"}],
                    "candidates": [" red circle", " blue square"],
                }
            ]
        }
    )

    candidates: Texts
    normalize: Literal["sum", "mean"] = Field(
        "sum", description="rank by a candidate's log-likelihood, or by that per token"
    )
    ensemble: int = Field(
        1,
        ge=1,
        le=32,
        description="average the log-likelihoods over so many orders of the examples, the first "
        "as given (Flamingo, prompt ensembling)",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the other orders")
    calibrate: bool = Field(
        False,
        description="divide each likelihood by the one with a grey picture in place of the last",
    )

    @model_validator(mode="after")
    def check_ensemble(self) -> ClassifyRequest:
        if self.ensemble > 1 and self.task is None:
            message = "ensemble puts examples in other orders: give a task with its examples"
            raise BadRequest(message, param="ensemble", code="no_examples")
        return self


class ScoreRequest(RunRequest):
    """How likely is each token of these continuations of the prompt? They are read as candidates
    of `/v1/classify` are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": [{"type": "text", "text": "This is a"}],
                    "continuations": [" red circle."],
                }
            ]
        }
    )

    continuations: Texts

    @field_validator("continuations", mode="before")
    @classmethod
    def one_continuation(cls, value: object) -> object:
        """A lone string is a list of one."""
        return [value] if isinstance(value, str) else value


class ScoredText(BaseModel):
    """`index` is its place in the request; `sum` the log-likelihood, `mean` that per token."""

    index: int
    text: str
    sum: float
    mean: float


class ScoredCandidate(ScoredText):
    """`score` is what ranks: the sum or mean, less that with a blank picture if calibrated;
    `probability` the softmax of it over all candidates."""

    score: float
    probability: float


class ClassifyResponse(BaseModel):
    """Best first."""

    id: str
    model: str
    candidates: list[ScoredCandidate]
    usage: Usage
    timings: Timings


class ScoredToken(BaseModel):
    token_id: int
    token: str
    logprob: float


class ScoredContinuation(ScoredText):
    tokens: list[ScoredToken]


class ScoreResponse(BaseModel):
    """In the order of the request."""

    id: str
    model: str
    continuations: list[ScoredContinuation]
    usage: Usage
    timings: Timings
