"""The wire: what `/v1/generate` and `/v1/render` take and give. Unknown fields are refused.

Shapes are the contract; nothing here knows the engine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from .errors import BadRequest

LATER = (
    "adapter",
    "constraint",
    "early_stopping",
    "explain",
    "length_penalty",
    "prompt_logprobs",
    "stream_hypotheses",
    "support_set",
)
"""Fields of the contract that this version does not serve yet, and says so."""


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MediaSource(Wire):
    """Exactly one of `url` (a `data:` URL), `data` (base64) and `id`."""

    url: str | None = None
    data: str | None = None
    id: str | None = None
    media_type: str | None = Field(None, examples=["image/png"])


def whole_characters(value: str) -> str:
    """JSON can name half of a surrogate pair; no tokenizer can read it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no character") from None
    return value


Characters = Annotated[str, AfterValidator(whole_characters)]
Fps = Annotated[
    float, Field(gt=0, le=1000, description="frames a second, evenly fewer if too many")
]
MaxFrames = Annotated[int, Field(ge=1, le=1_000_000, description="at most this many frames")]


class TextPart(Wire):
    type: Literal["text"]
    text: Characters
    special_tokens: bool = Field(
        False, description="read `<|endofchunk|>` and the like in `text` as special tokens"
    )


class ImagePart(Wire):
    type: Literal["image"]
    image: MediaSource


class VideoPart(Wire):
    """A film, or an animated GIF, WebP or PNG: one media of as many frames as are taken."""

    type: Literal["video"]
    video: MediaSource
    fps: Fps = 1.0
    max_frames: MaxFrames = 8


MediaPart = ImagePart | VideoPart
Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class TemplateTask(Wire):
    """A template of your own: `{name}` is a field, `{{` and `}}` braces, `<image>` the media."""

    template: Annotated[Characters, Field(max_length=10_000)]


TaskName = Literal["caption", "vqa", "classify", "hateful_memes", "dialogue"]
TASK_KINDS = ("name", "template")
Task = Annotated[
    Annotated[TaskName, Tag("name")] | Annotated[TemplateTask, Tag("template")],
    Discriminator(lambda value: TASK_KINDS[isinstance(value, dict | TemplateTask)]),
]


class Turn(Wire):
    question: Characters
    answer: Characters | None = None


class Shot(Wire):
    """An example, or the query: a picture or a film, and the task's fields as text."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Characters]

    image: MediaSource | None = None
    video: MediaSource | None = None
    fps: Fps = 1.0
    max_frames: MaxFrames = 8
    turns: Annotated[list[Turn], Field(max_length=256)] | None = Field(
        None, description="of task dialogue, instead of fields"
    )

    def fields(self) -> dict[str, str]:
        return self.__pydantic_extra__ or {}


class PromptRequest(Wire):
    """Either `prompt`, in parts; or a `task` with its `query`, and `examples` of it."""

    prompt: list[Part] | None = None
    task: Task | None = None
    examples: list[Shot] = Field(default_factory=list, max_length=1024)
    query: Shot | None = None
    zero_shot: bool = Field(
        False,
        description="of task caption and vqa: the examples have no pictures; without any, "
        "caption takes the paper's two",
    )
    model: str | None = Field(None, description="must name the loaded model, if given")

    @field_validator("examples", mode="before")
    @classmethod
    def no_examples(cls, value: object) -> object:
        return [] if value is None else value

    @model_validator(mode="after")
    def check_form(self) -> PromptRequest:
        if self.prompt is not None and self.task is not None:
            raise BadRequest("give prompt or task, not both", param="task", code="prompt_and_task")
        if self.task is None and (self.query or self.examples or self.zero_shot):
            message = "examples, query and zero_shot need a task, such as 'vqa', and no prompt"
            raise BadRequest(message, param="task", code="no_task")
        if self.prompt is None and self.task is None:
            message = "give a prompt (a list of parts), or a task with its query"
            raise BadRequest(message, param="prompt", code="no_prompt")
        if self.task is not None and self.query is None:
            message = "a task needs a query: the picture, and fields, to be answered"
            raise BadRequest(message, param="query", code="no_query")
        return self


class GenerateRequest(PromptRequest):
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
    num_beams: int = Field(1, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20, description="top-k per generated token")
    stream: bool = False
    priority: int = Field(0, ge=-100, le=100, description="larger goes first")
    deadline_ms: int | None = Field(None, ge=1, le=86_400_000)
    cache_salt: str | None = Field(None, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def refuse_later_fields(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        absent = {field for field in LATER if values.get(field) is None or values[field] is False}
        named = [field for field in LATER if field in values.keys() - absent]
        if named:
            raise BadRequest(
                f"{named[0]} is not served by this version: leave it out",
                param=named[0],
                code="not_supported",
            )
        return {field: value for field, value in values.items() if field not in absent}

    @model_validator(mode="after")
    def refuse_beams(self) -> GenerateRequest:
        if self.num_beams > 1:
            raise BadRequest(
                "beam search is not served by this version: leave num_beams out or set it to 1",
                param="num_beams",
                code="not_supported",
            )
        return self

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


class RenderedPart(BaseModel):
    """`place` is where in the request it came from, null for a template's text; a picture's bytes
    are not repeated."""

    type: Literal["text", "image", "video"]
    place: str | None
    text: str | None = None
    special_tokens: bool | None = None


class RenderedToken(BaseModel):
    """`media` is the number, from 0, of the picture or film that this token sees."""

    token_id: int
    token: str
    media: int | None


class RenderResponse(BaseModel):
    model: str
    parts: list[RenderedPart]
    token_ids: list[int]
    tokens: list[RenderedToken]


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
    usage: Usage
    timings: Timings


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Health(BaseModel):
    status: Literal["ok", "ready", "loading", "draining", "failed"]


class Version(BaseModel):
    version: str
    model: str
    torch: str
