"""What `/v1/embeddings` takes and gives: OpenAI's shape, with pictures and films for texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import BadRequest
from .prompt import Fps, ImagePart, MaxFrames, MediaSource, VideoPart, Wire


class MediaInput(Wire):
    """A picture or a film; `type`, as a part of a prompt has it, may stand there."""

    type: Literal["image", "video"] | None = None
    image: MediaSource | None = None
    video: MediaSource | None = None
    fps: Fps = 1.0
    max_frames: MaxFrames = 8

    @model_validator(mode="after")
    def check_kind(self) -> MediaInput:
        if (self.image is None) == (self.video is None):
            raise ValueError("give exactly one of image and video")
        if self.type is not None and getattr(self, self.type) is None:
            raise ValueError(f"type says {self.type}, which is not there")
        if self.image is not None and {"fps", "max_frames"} & self.model_fields_set:
            raise ValueError("fps and max_frames belong to a video")
        return self

    def part(self) -> ImagePart | VideoPart:
        if self.image is not None:
            return ImagePart(type="image", image=self.image)
        assert self.video is not None
        return VideoPart(type="video", video=self.video, fps=self.fps, max_frames=self.max_frames)


class EmbeddingsRequest(Wire):
    """Features of the frozen vision tower: averaged over the tokens of a frame and the frames of a
    film, and of length 1, so that their products are cosines.

    The checkpoint has no text tower, so that a text has no place among them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"input": [{"image": {"url": "data:image/png;base64,iVBOR..."}}]}]
        }
    )

    input: Annotated[list[MediaInput], Field(min_length=1)]
    model: str | None = Field(None, description="must name the loaded model, if given")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="numbers, or base64 of them as little-endian 32-bit floats"
    )
    user: str | None = Field(None, description="read by nobody; OpenAI's clients may send it")

    @model_validator(mode="before")
    @classmethod
    def refuse_dimensions(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("dimensions") is not None:
            message = "the features have one size: leave dimensions out"
            raise BadRequest(message, param="dimensions", code="not_supported")
        return {name: value for name, value in values.items() if value is not None}

    @field_validator("input", mode="before")
    @classmethod
    def read_input(cls, value: Any) -> Any:
        """One picture is a list of one; texts, and tokens, are refused with the reason."""
        items = value if isinstance(value, list) else [value]
        for number, item in enumerate(items):
            if isinstance(item, str | int | list) or (isinstance(item, dict) and "text" in item):
                raise BadRequest(
                    "this checkpoint has no text tower, so that a text has no embedding beside "
                    'those of pictures: send {"image": ...} or {"video": ...}',
                    param=f"input[{number}]",
                    code="no_text_tower",
                )
        return items


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Pictures have no tokens; `cached_media` of the `media` were known before."""

    prompt_tokens: int
    total_tokens: int
    media: int
    cached_media: int


class EmbeddingsResponse(BaseModel):
    """In the order of the request."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
