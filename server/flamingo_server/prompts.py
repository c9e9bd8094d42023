"""Wire parts → an engine prompt: text to tokens, pictures to pixels, limits before work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flamingo_model.prompt import MediaPart, Part, PromptError, PromptRenderer, RenderedPrompt
from flamingo_model.prompt import TextPart as Text

from .engine.request import Media, Prompt
from .errors import BadRequest, NotFound, TooLarge, naming
from .media.pool import MediaPool
from .media.resolve import MediaReference, resolve
from .protocol import ImagePart, MediaSource
from .protocol import Part as WirePart

LONGEST_TOKEN = 64  # characters; a text longer than this times the limit need not be tokenised
INLINE_CHARACTERS = 20_000  # longer texts are tokenised in a thread


class PromptBuilder:
    """Holds what turning parts into prompts needs: the tokenizer, the picture pool, the limits."""

    def __init__(
        self, renderer: PromptRenderer, pool: MediaPool, max_tokens: int, max_media: int
    ) -> None:
        self.renderer, self.pool = renderer, pool
        self.max_tokens, self.max_media = max_tokens, max_media

    async def build(self, parts: Sequence[WirePart]) -> Prompt:
        """Raises BadRequest, TooLarge, Forbidden, NotFound or UnsupportedMedia, naming the part."""
        images = [(i, part) for i, part in enumerate(parts) if isinstance(part, ImagePart)]
        self.check_counts(parts, len(images))
        rendered = await self.render(parts)
        self.check_length(len(rendered.token_ids))
        media = await asyncio.gather(*(self.load(part, i) for i, part in images))
        return Prompt(
            rendered.token_ids, rendered.media_index, list(media), rendered.generated_media
        )

    def check_counts(self, parts: Sequence[WirePart], num_media: int) -> None:
        if num_media > self.max_media:
            raise TooLarge(
                f"the prompt has {num_media} pictures; at most {self.max_media} are allowed",
                param="prompt",
                code="too_many_media",
            )
        characters = sum(len(part.text) for part in parts if not isinstance(part, ImagePart))
        if characters > self.max_tokens * LONGEST_TOKEN:
            raise TooLarge(
                f"the prompt has {characters:,} characters; {self.max_tokens:,} tokens, the limit, "
                f"never need more than {self.max_tokens * LONGEST_TOKEN:,}",
                param="prompt",
                code="prompt_too_long",
            )

    async def render(self, parts: Sequence[WirePart]) -> RenderedPrompt:
        rendered = [to_part(part) for part in parts]
        long = sum(len(p.text) for p in rendered if isinstance(p, Text)) > INLINE_CHARACTERS
        try:
            if long:
                return await asyncio.to_thread(self.renderer.render, rendered)
            return self.renderer.render(rendered)
        except PromptError as error:
            where = "prompt" if error.part is None else f"prompt[{error.part}].text"
            raise BadRequest(str(error), param=where, code="bad_prompt") from None

    def check_length(self, num_tokens: int) -> None:
        if num_tokens >= self.max_tokens:
            raise TooLarge(
                f"the prompt has {num_tokens:,} tokens; prompt and answer together may have "
                f"{self.max_tokens:,}: shorten the text or send fewer examples",
                param="prompt",
                code="prompt_too_long",
            )

    async def load(self, part: ImagePart, index: int) -> Media:
        where = f"prompt[{index}].image"
        with naming(where):
            data = resolve(reference(part.image), self.pool.limits, where)
        decoded = await self.pool.decode(data, index, param=where)
        return Media(decoded.pixels[None], decoded.digest)


def to_part(part: WirePart) -> Part:
    if isinstance(part, ImagePart):
        return MediaPart()
    return Text(part.text, part.special_tokens)


def reference(source: MediaSource) -> MediaReference:
    if source.id is not None:
        if source.url is not None or source.data is not None:
            raise BadRequest("give exactly one of url, data and id", code="one_of_url_and_data")
        raise NotFound(
            f"no picture {source.id[:80]!r} is stored here: send its bytes as data or a data: URL",
            code="unknown_media_id",
        )
    return MediaReference(source.url, source.data, source.media_type)
