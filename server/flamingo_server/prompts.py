"""A request → an engine prompt: text to tokens, pictures to pixels, limits before work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from flamingo_model.film import FilmOptions
from flamingo_model.prompt import MediaPart, Part, PromptError, PromptRenderer, RenderedPrompt
from flamingo_model.prompt import TextPart as Text
from flamingo_model.templates import (
    PAPER_SHOTS,
    ZERO_SHOT_TASKS,
    Piece,
    Template,
    TemplateError,
    Templates,
    Values,
)

from .engine.request import Media, Prompt
from .errors import BadRequest, NotFound, TooLarge, naming
from .media.pool import MediaPool
from .media.resolve import MediaReference, resolve
from .protocol.prompt import ImagePart, MediaSource, PromptRequest, Shot, TemplateTask, VideoPart
from .protocol.prompt import MediaPart as WireMedia
from .protocol.prompt import Part as WirePart
from .protocol.prompt import TextPart as WireText

LONGEST_TOKEN = 64  # characters; a text longer than this times the limit need not be tokenised
INLINE_CHARACTERS = 20_000  # longer texts are tokenised in a thread
LONGEST_PLACE = 80  # a client's own field names are in it


@dataclass(frozen=True)
class PromptLimits:
    """`max_frames` counts those of all films together."""

    max_tokens: int
    max_media: int
    max_frames: int


@dataclass(frozen=True)
class Layout:
    """The model room's parts, the media for its media parts in order, and whence each came."""

    parts: list[Part]
    places: list[str | None]  # of each part; None: it came from a template
    media: list[tuple[WireMedia, str]]
    root: str  # the field of the request that errors about the whole prompt name
    blank: str = ""  # what a template has between prompt and answer


class PromptBuilder:
    """Holds what turning requests into prompts needs: tokenizer, templates, pool, limits."""

    def __init__(
        self,
        renderer: PromptRenderer,
        templates: Templates,
        pool: MediaPool,
        limits: PromptLimits,
    ) -> None:
        self.renderer, self.templates = renderer, templates
        self.pool, self.limits = pool, limits

    async def build(self, layout: Layout, rendered: RenderedPrompt, salt: str | None) -> Prompt:
        """Looks into the pictures, the last and dearest thing to do.

        Raises BadRequest, TooLarge, Forbidden, NotFound or UnsupportedMedia, naming the part.
        """
        media = await asyncio.gather(*(self.load(*found) for found in layout.media))
        return to_prompt(rendered, list(media), salt)

    def lay_out(self, body: PromptRequest) -> Layout:
        """Raises BadRequest and TooLarge; looks into no picture."""
        if body.prompt is not None:
            layout = of_parts(body.prompt)
        else:
            layout = self.of_task(body)
        self.check_media([media for media, _ in layout.media], layout.root)
        self.check_characters((p.text for p in layout.parts if isinstance(p, Text)), layout.root)
        return layout

    def of_task(self, body: PromptRequest) -> Layout:
        """The structured form, through the family's template or a custom one."""
        assert body.task is not None and body.query is not None
        media = list(media_of(body))
        self.check_media([found for found, _ in media], "examples")
        try:
            template = self.template(body.task)
            examples = [
                turns_of(s, template, f"examples[{i}]") for i, s in enumerate(body.examples)
            ]
            query = turns_of(body.query, template, "query")
            values = (v for turns in (*examples, query) for turn in turns for v in turn.values())
            self.check_characters(values, "examples")  # templates repeat them
            if body.zero_shot and not examples:
                examples = [[{"caption": text}] for text in PAPER_SHOTS]
            parts = template.render(examples, query, text_only_examples=body.zero_shot)
        except TemplateError as error:
            place = error.place.encode(errors="replace").decode()[:LONGEST_PLACE]
            raise BadRequest(str(error), param=place, code="bad_template") from None
        root = "examples" if examples else "query"
        return Layout(parts, [None] * len(parts), media, root, answer_blank(template, query))

    def template(self, task: str | TemplateTask) -> Template:
        if isinstance(task, TemplateTask):
            return self.templates.custom(task.template)
        return self.templates.task(task)

    def check_media(self, media: Sequence[WireMedia], root: str) -> None:
        if len(media) > self.limits.max_media:
            raise TooLarge(
                f"the prompt has {len(media)} pictures and films; "
                f"at most {self.limits.max_media} are allowed",
                param=root,
                code="too_many_media",
            )
        num_frames = sum(film.max_frames for film in media if isinstance(film, VideoPart))
        films = sum(isinstance(film, VideoPart) for film in media)
        if films > 1 and num_frames > self.limits.max_frames:  # of one, the pool has its own limit
            raise TooLarge(
                f"the films may have {num_frames:,} frames together; the limit is "
                f"{self.limits.max_frames:,}: set a smaller max_frames",
                param=root,
                code="too_many_frames",
            )

    def check_characters(self, texts: Iterator[str], root: str) -> None:
        characters, max_tokens = sum(map(len, texts)), self.limits.max_tokens
        if characters > max_tokens * LONGEST_TOKEN:
            raise TooLarge(
                f"the prompt has {characters:,} characters; {max_tokens:,} tokens, the limit, "
                f"never need more than {max_tokens * LONGEST_TOKEN:,}",
                param=root,
                code="prompt_too_long",
            )

    async def render(self, layout: Layout) -> RenderedPrompt:
        """Raises BadRequest, and TooLarge for more tokens than fit."""
        long = sum(len(p.text) for p in layout.parts if isinstance(p, Text)) > INLINE_CHARACTERS
        return await asyncio.to_thread(self.render_now, layout) if long else self.render_now(layout)

    def render_now(self, layout: Layout) -> RenderedPrompt:
        """`render` for threads."""
        try:
            rendered = self.renderer.render(layout.parts)
        except PromptError as error:
            where = None if error.part is None else layout.places[error.part]
            raise BadRequest(str(error), param=where or layout.root, code="bad_prompt") from None
        self.check_length(len(rendered.token_ids), layout.root)
        return rendered

    def check_length(self, num_tokens: int, root: str) -> None:
        if num_tokens >= self.limits.max_tokens:
            raise TooLarge(
                f"the prompt has {num_tokens:,} tokens; prompt and answer together may have "
                f"{self.limits.max_tokens:,}: shorten the text or send fewer examples",
                param=root,
                code="prompt_too_long",
            )

    async def load(self, part: WireMedia, where: str) -> Media:
        """A picture is a film of one frame to the engine."""
        film = None
        if isinstance(part, VideoPart):
            film = FilmOptions(fps=part.fps, max_frames=part.max_frames)
            self.check_frames(film, where)
        source = part.video if isinstance(part, VideoPart) else part.image
        with naming(where):
            data = resolve(reference(source, part.type), self.pool.limits, where)
        decoded = await self.pool.decode(data, param=where, film=film)
        return Media(decoded.pixels if film else decoded.pixels[None], decoded.digest)

    def check_frames(self, film: FilmOptions, where: str) -> None:
        """Before the file is looked at, and naming the field."""
        with naming(f"{where.removesuffix('.video')}.max_frames"):
            self.pool.limits.check_film(film)


def to_prompt(rendered: RenderedPrompt, media: list[Media], salt: str | None) -> Prompt:
    return Prompt(rendered.token_ids, rendered.media_index, media, rendered.generated_media, salt)


def answer_blank(template: Template, query: Sequence[Values]) -> str:
    """The blank that examples have before their answer, and the end of the prompt has not."""
    if template.answer is None or template.answer in query[-1]:
        return ""
    pieces = template.turn if len(query) > 1 else template.example
    for before, piece in pairwise(pieces):
        if piece == Piece("field", template.answer):
            return " " if before.kind == "text" and before.text.endswith(" ") else ""
    return ""


def of_parts(parts: Sequence[WirePart]) -> Layout:
    return Layout(
        parts=[to_part(part) for part in parts],
        places=[f"prompt[{i}].{part.type}" for i, part in enumerate(parts)],
        media=[
            (part, f"prompt[{i}].{part.type}")
            for i, part in enumerate(parts)
            if not isinstance(part, WireText)
        ],
        root="prompt",
    )


def to_part(part: WirePart) -> Part:
    if isinstance(part, WireText):
        return Text(part.text, part.special_tokens)
    return MediaPart()


def media_of(body: PromptRequest) -> Iterator[tuple[WireMedia, str]]:
    """Of each example, then of the query. Raises BadRequest where one lacks it, or has two."""
    assert body.query is not None
    if body.zero_shot:
        check_zero_shot(body)
    else:
        for number, shot in enumerate(body.examples):
            yield media_of_shot(shot, f"examples[{number}]")
    yield media_of_shot(body.query, "query")


def media_of_shot(shot: Shot, place: str) -> tuple[WireMedia, str]:
    if (shot.image is None) == (shot.video is None):
        message = f"{place} needs exactly one of image and video"
        raise BadRequest(message, param=f"{place}.image", code="one_of_image_and_video")
    if shot.video is not None:
        film = VideoPart(type="video", video=shot.video, fps=shot.fps, max_frames=shot.max_frames)
        return film, f"{place}.video"
    assert shot.image is not None
    for name in ("fps", "max_frames"):
        if name in shot.model_fields_set:
            message = f"{name} belongs to a video, and {place} has an image"
            raise BadRequest(message, param=f"{place}.{name}", code="not_a_video")
    return ImagePart(type="image", image=shot.image), f"{place}.image"


def check_zero_shot(body: PromptRequest) -> None:
    if body.task not in ZERO_SHOT_TASKS:
        message = f"zero_shot is for {' and '.join(ZERO_SHOT_TASKS)}: leave it out"
        raise BadRequest(message, param="zero_shot", code="no_zero_shot")
    for number, shot in enumerate(body.examples):
        if shot.image is not None or shot.video is not None:
            name = "video" if shot.image is None else "image"
            message = f"examples[{number}].{name}: with zero_shot, examples are words alone"
            raise BadRequest(message, param=f"examples[{number}].{name}", code="not_text_only")
    if not body.examples and body.task != "caption":
        message = f"zero_shot {body.task} takes examples without pictures, two of them as published"
        raise BadRequest(message, param="examples", code="no_examples")


def turns_of(shot: Shot, template: Template, place: str) -> list[Values]:
    """A shot's fields, once for each turn."""
    if not template.is_dialogue:
        if shot.turns is not None:
            raise TemplateError("turns belong to the task dialogue", f"{place}.turns")
        return [shot.fields()]
    if shot.turns is None:
        raise TemplateError(f"{place} of a dialogue needs turns", f"{place}.turns")
    for name in shot.fields():
        message = f"{place} has no field {name[:80]!r}: a dialogue's are in its turns"
        raise TemplateError(message, f"{place}.{name}")
    return [turn.model_dump(exclude_none=True) for turn in shot.turns]


def reference(source: MediaSource, kind: str) -> MediaReference:
    if source.id is not None:
        if source.url is not None or source.data is not None:
            raise BadRequest("give exactly one of url, data and id", code="one_of_url_and_data")
        noun = "film" if kind == "video" else "picture"
        raise NotFound(
            f"no {noun} {source.id[:80]!r} is stored here: send its bytes as data or a data: URL",
            code="unknown_media_id",
        )
    return MediaReference(source.url, source.data, source.media_type)
