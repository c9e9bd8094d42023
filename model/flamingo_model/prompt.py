"""Parts in order → token ids, and the media each token sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tokenizers import Tokenizer

from .config import FlamingoConfig, SpecialTokens
from .cross_attention import MEDIA_RULES, MarkIds, MediaRule


@dataclass(frozen=True)
class TextPart:
    """Literal text; with `special_tokens`, `<|endofchunk|>` and the like become single tokens."""

    text: str
    special_tokens: bool = False


@dataclass(frozen=True)
class MediaPart:
    """Where the next picture or film stands."""


Part = TextPart | MediaPart


@dataclass(frozen=True)
class RenderedPrompt:
    """`media_index` holds for each token the number of the media it sees, -1 for none.

    `generated_media` is the one that the tokens after the prompt see.
    """

    token_ids: list[int]
    media_index: list[int]
    generated_media: int


class PromptError(ValueError):
    """The parts cannot be a prompt; the message says what to change, `part` which one."""

    def __init__(self, message: str, part: int | None = None) -> None:
        super().__init__(message)
        self.part = part


class PromptRenderer:
    """Two views of the tokenizer: one that knows special tokens in text, one that does not."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: SpecialTokens,
        rule: MediaRule = MEDIA_RULES["last"],
    ) -> None:
        self.special, self.rule = tokenizer, rule
        self.literal = Tokenizer.from_str(tokenizer.to_str())
        self.literal.encode_special_tokens = True
        self.image_token = tokens.image
        self.image_token_id = special_id(tokenizer, tokens.image)
        self.begin = [special_id(tokenizer, tokens.begin)] if tokens.begin else []
        end_of_text = tokenizer.token_to_id(tokens.end_of_text)
        self.marks = MarkIds(frozenset({self.image_token_id}), end_of_text)

    def render(self, parts: Sequence[Part]) -> RenderedPrompt:
        """Raises PromptError for an empty prompt and for an image token written into text."""
        ids = self.token_ids(parts)
        if not ids:
            raise PromptError("the prompt is empty: send at least one character or one picture")
        ids = [*self.begin, *ids]
        index = self.rule.prompt(ids, self.marks)
        return RenderedPrompt(ids, index, self.rule.generated(index))

    def token_ids(self, parts: Sequence[Part]) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self.image_token_id] if isinstance(part, MediaPart) else self.text(part, number)
        return ids

    def text(self, part: TextPart, number: int = 0) -> list[int]:
        tokenizer = self.special if part.special_tokens else self.literal
        ids: list[int] = tokenizer.encode(part.text, add_special_tokens=False).ids
        if self.image_token_id in ids:
            raise PromptError(
                f"{self.image_token} in a text part has no picture: send a part of type image",
                number,
            )
        return ids


def special_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer lacks the special token {token}")
    return found


class IdeficsRenderer(PromptRenderer):
    """Fake tokens around pictures; neighbours share the one between them.

    The tokenizer puts a space before a text, so texts in a row go through it as one. Where the
    model knows `<end_of_utterance>`, it is for the client to write it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: SpecialTokens,
        rule: MediaRule = MEDIA_RULES["until_end_of_text"],
    ) -> None:
        super().__init__(tokenizer, tokens, rule)
        self.fake = special_id(tokenizer, "<fake_token_around_image>")

    def token_ids(self, parts: Sequence[Part]) -> list[int]:
        ids: list[int] = []
        for number, part in joined_texts(parts):
            if isinstance(part, TextPart):
                ids += self.text(part, number)
                continue
            opening = [] if ids[-2:] == [self.image_token_id, self.fake] else [self.fake]
            ids += [*opening, self.image_token_id, self.fake]
        return ids


def joined_texts(parts: Sequence[Part]) -> Iterator[tuple[int, Part]]:
    """Parts with their numbers; texts in a row that are read alike are one, with the first's."""
    kinds = groupby(enumerate(parts), lambda item: getattr(item[1], "special_tokens", None))
    for _, group in kinds:
        number, first = next(group)
        if isinstance(first, MediaPart):
            yield number, first
            yield from group
        else:
            rest = (part.text for _, part in group if isinstance(part, TextPart))
            yield number, TextPart("".join([first.text, *rest]), first.special_tokens)


RENDERERS: dict[str, type[PromptRenderer]] = {"plain": PromptRenderer, "idefics": IdeficsRenderer}


def build_renderer(tokenizer: Tokenizer, config: FlamingoConfig) -> PromptRenderer:
    """The renderer that `config.prompt` names, with the model's rule of who sees what."""
    rule = MEDIA_RULES[config.cross_attention.media_rule]
    return RENDERERS[config.prompt](tokenizer, config.tokens, rule)
