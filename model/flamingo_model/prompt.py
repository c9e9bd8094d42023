"""Parts in order → token ids, and the media each token sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from .config import SpecialTokens
from .cross_attention import visible_media


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
    """`media_index` holds for each token the number of the media it sees, -1 for none."""

    token_ids: list[int]
    media_index: list[int]


class PromptError(ValueError):
    """The parts cannot be a prompt; the message says what to change, `part` which one."""

    def __init__(self, message: str, part: int | None = None) -> None:
        super().__init__(message)
        self.part = part


class PromptRenderer:
    """Two views of the tokenizer: one that knows special tokens in text, one that does not."""

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        self.special = tokenizer
        self.literal = Tokenizer.from_str(tokenizer.to_str())
        self.literal.encode_special_tokens = True
        self.image_token = tokens.image
        self.image_token_id = special_id(tokenizer, tokens.image)
        self.begin = [special_id(tokenizer, tokens.begin)] if tokens.begin else []

    def render(self, parts: Sequence[Part]) -> RenderedPrompt:
        """Raises PromptError for an empty prompt and for an image token written into text."""
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self.image_token_id] if isinstance(part, MediaPart) else self.text(part, number)
        if not ids:
            raise PromptError("the prompt is empty: send at least one character or one picture")
        ids = [*self.begin, *ids]
        return RenderedPrompt(ids, visible_media(ids, self.image_token_id))

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
