"""A prompt as a client writes it, in parts or as a task with examples; and how it was rendered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from ..errors import BadRequest

LATER = ("explain", "support_set")
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
    adapter: str | None = Field(
        None, description="a name of `GET /v1/adapters`; without one the base model answers"
    )

    @model_validator(mode="before")
    @classmethod
    def read_absent_fields(cls, values: Any) -> Any:
        """A field that is null is left out; one of another version too, where it asks nothing."""
        if not isinstance(values, dict):
            return values
        for name in LATER:
            if values.get(name) not in (None, False):
                raise BadRequest(
                    f"{name} is not served by this version: leave it out",
                    param=name,
                    code="not_supported",
                )
        known = {*cls.model_fields, *LATER}
        return {
            k: v for k, v in values.items() if k not in LATER and (v is not None or k not in known)
        }

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


class RunRequest(PromptRequest):
    """A prompt for the engine, whatever is asked of it."""

    priority: int = Field(0, ge=-100, le=100, description="larger goes first")
    deadline_ms: int | None = Field(None, ge=1, le=86_400_000)
    cache_salt: Annotated[Characters, Field(min_length=1, max_length=256)] | None = Field(
        None, description="prompts share what was computed only with those of the same salt"
    )


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
