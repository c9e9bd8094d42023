"""Parts in order → token ids, and the media each token sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tokenizers import Tokenizer

from .config import SpecialTokens
from .cross_attention import last_marked_media


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


Encode = Callable[[TextPart, int, str], list[int]]
"""(part, its number, what stands right before it) → tokens of both together."""


class Marker(Protocol):
    """How a picture stands in a prompt."""

    ids: frozenset[int]  # each of them says: here is a picture
    reserved: frozenset[int]  # no text part may hold one
    never_answered: frozenset[int]
    refusal: str

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]: ...


class TokenMarker:
    """One special token."""

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        self.image_token_id = special_id(tokenizer, tokens.image)
        self.ids = self.reserved = self.never_answered = frozenset({self.image_token_id})
        self.refusal = f"{tokens.image} in a text part has no picture: send a part of type image"

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(parts):
            if isinstance(part, TextPart):
                ids += encode(part, number, "")
            else:
                ids.append(self.image_token_id)
        return ids


class TextMarker:
    """Plain text, and a picture is wherever a token is its first letter, a space before or not.

    flamingo-mini, for `<image>`: in its own code any `<` of a text counts as a picture; here none
    can be sent. And the picture's `<` is always a token of its own, where its code would join it to
    punctuation right before it and lose the picture. Other prompts get the tokens of its code.
    """

    never_answered = frozenset[int]()

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        self.image, letter = tokens.image, tokens.image[:1]
        marks = (
            tokenizer.encode(mark, add_special_tokens=False) for mark in (letter, f" {letter}")
        )
        self.ids = frozenset(mark.ids[-1] for mark in marks)
        added = tokenizer.get_added_tokens_decoder()
        vocabulary = tokenizer.get_vocab().items()
        self.reserved = frozenset(i for t, i in vocabulary if letter in t and i not in added)
        self.refusal = (
            f'this model takes every "{letter}" for a picture, so a text part must have none: '
            "say it in words, and send pictures as parts of type image"
        )

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]:
        return [i for mark, part, number in self.joined(parts) for i in encode(part, number, mark)]

    def joined(self, parts: Sequence[Part]) -> list[tuple[str, TextPart, int]]:
        """Each picture's text with the text behind it, and with one space from before it."""
        found: list[tuple[str, TextPart, int]] = []
        for number, part in enumerate(parts):
            mark, before, at = found[-1] if found else ("", TextPart(""), 0)
            if isinstance(part, TextPart):
                if mark and not before.text:
                    found.pop()
                found.append(("" if before.text else mark, part, number))
                continue
            space = " " if before.text.endswith(" ") else ""
            if space:
                found[-1] = (mark, replace(before, text=before.text[:-1]), at)
            found.append((space + self.image, TextPart(""), number))
        return found


MARKERS: dict[str, Callable[[Tokenizer, SpecialTokens], Marker]] = {
    "token": TokenMarker,
    "text": TextMarker,
}


class PromptRenderer:
    """Two views of the tokenizer: one that knows special tokens in text, one that does not."""

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        self.special = tokenizer
        self.literal = Tokenizer.from_str(tokenizer.to_str())
        self.literal.encode_special_tokens = True
        self.marker = MARKERS[tokens.image_style](tokenizer, tokens)
        self.begin = [special_id(tokenizer, tokens.begin)] if tokens.begin else []

    def render(self, parts: Sequence[Part]) -> RenderedPrompt:
        """Raises PromptError for an empty prompt and for a picture's marker written into text."""
        ids = self.marker.write(parts, self.text)
        if not ids:
            raise PromptError("the prompt is empty: send at least one character or one picture")
        ids = [*self.begin, *ids]
        return RenderedPrompt(ids, last_marked_media(ids, self.marker.ids))

    def text(self, part: TextPart, number: int = 0, mark: str = "") -> list[int]:
        """`mark` is ours, one token of it says that a picture is here: its first."""
        tokenizer = self.special if part.special_tokens else self.literal
        ids: list[int] = tokenizer.encode(mark + part.text, add_special_tokens=False).ids
        if not self.marker.reserved.isdisjoint(ids[bool(mark) :]):
            raise PromptError(self.marker.refusal, number)
        return ids


def special_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer lacks the special token {token}")
    return found
