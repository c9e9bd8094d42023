"""Parts in order → token ids, and the media each token sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Protocol

from tokenizers import Tokenizer

from .config import FlamingoConfig, SpecialTokens
from .cross_attention import MEDIA_RULES, MarkIds, MediaRule

REMEMBERED, LONGEST_REMEMBERED = 1024, 512  # texts, and their characters: at most some 20 MB


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


Encode = Callable[[TextPart], list[int]]


class Marker(Protocol):
    """How a picture stands in a prompt."""

    ids: frozenset[int]  # each of them says: here is a picture
    never_answered: frozenset[int]

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]:
        """Raises PromptError for a marker in a text part."""


class TokenMarker:
    """One special token."""

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        self.image_token, self.image_token_id = tokens.image, special_id(tokenizer, tokens.image)
        self.ids = self.never_answered = frozenset({self.image_token_id})

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(parts):
            if isinstance(part, TextPart):
                ids += self.checked(encode(part), number)
            else:
                ids.append(self.image_token_id)
        return ids

    def checked(self, ids: list[int], number: int) -> list[int]:
        if self.image_token_id in ids:
            raise PromptError(
                f"{self.image_token} in a text part has no picture: send a part of type image",
                number,
            )
        return ids


class TextMarker:
    """Plain text, and a picture is wherever a token is its first letter, a space before or not.

    flamingo-mini, for `<image>`: in its own code any `<` of a text counts as a picture; here none
    can be sent. And the picture's `<` is always a token of its own, where its code would join it to
    punctuation right before it and lose the picture. Other prompts get the tokens of its code.
    """

    never_answered = frozenset[int]()

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        self.letter, self.rest = tokens.image[:1], tokens.image[1:]
        marks = (self.letter, f" {self.letter}")
        found = [tokenizer.encode(mark, add_special_tokens=False).ids[-1] for mark in marks]
        self.plain, self.ids = found[0], frozenset(found)
        added, vocabulary = tokenizer.get_added_tokens_decoder(), tokenizer.get_vocab().items()
        self.reserved = frozenset(i for t, i in vocabulary if self.letter in t and i not in added)

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]:
        """A text is encoded with the end of the marker before it and the letter of the next."""
        ids, before, text, at = list[int](), "", TextPart(""), 0
        for number, part in enumerate(parts):
            if isinstance(part, MediaPart):
                ids += self.up_to_media(before, text, at, encode)
                before, text = self.rest, TextPart("")
            else:
                if text.text:
                    ids += self.encoded(before, text, at, encode)
                    before = ""
                text, at = part, number
        return ids + self.encoded(before, text, at, encode)

    def up_to_media(self, before: str, text: TextPart, at: int, encode: Encode) -> list[int]:
        alone = self.encoded(before, text, at, encode)
        together = encode(replace(text, text=f"{before}{text.text}{self.letter}"))
        return together if together[-1] in self.ids else [*alone, self.plain]

    def encoded(self, before: str, text: TextPart, at: int, encode: Encode) -> list[int]:
        ids = encode(replace(text, text=before + text.text))
        if self.reserved.isdisjoint(ids):
            return ids
        raise PromptError(
            f'this model takes every "{self.letter}" for a picture, so a text part must have none: '
            "say it in words, and send pictures as parts of type image",
            at,
        )


class IdeficsMarker(TokenMarker):
    """Fake tokens around pictures; neighbours share the one between them.

    The tokenizer puts a space before a text, so texts in a row go through it as one. Where the
    model knows `<end_of_utterance>`, it is for the client to write it.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
        super().__init__(tokenizer, tokens)
        self.fake = special_id(tokenizer, "<fake_token_around_image>")
        self.never_answered = self.ids | {self.fake}

    def write(self, parts: Sequence[Part], encode: Encode) -> list[int]:
        ids: list[int] = []
        for number, part in joined_texts(parts):
            if isinstance(part, TextPart):
                ids += self.checked(encode(part), number)
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


MARKERS: dict[str, Callable[[Tokenizer, SpecialTokens], Marker]] = {
    "token": TokenMarker,
    "text": TextMarker,
    "idefics": IdeficsMarker,
}


class PromptRenderer:
    """Two views of the tokenizer: one that knows special tokens in text, one that does not.

    Remembers short texts: prompts come with the same examples again and again.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: SpecialTokens,
        rule: MediaRule = MEDIA_RULES["last"],
    ) -> None:
        self.special, self.rule = tokenizer, rule
        self.literal = Tokenizer.from_str(tokenizer.to_str())
        self.literal.encode_special_tokens = True
        self.marker = MARKERS[tokens.image_style](tokenizer, tokens)
        self.begin = [special_id(tokenizer, tokens.begin)] if tokens.begin else []
        self.marks = MarkIds(self.marker.ids, tokenizer.token_to_id(tokens.end_of_text))
        self.remembered = lru_cache(REMEMBERED)(self.tokenise)

    def render(self, parts: Sequence[Part]) -> RenderedPrompt:
        """Raises PromptError for an empty prompt and for a picture's marker written into text."""
        ids = self.marker.write(parts, self.encode)
        if not ids:
            raise PromptError("the prompt is empty: send at least one character or one picture")
        ids = [*self.begin, *ids]
        index = self.rule.prompt(ids, self.marks)
        return RenderedPrompt(ids, index, self.rule.generated(index))

    def encode(self, part: TextPart) -> list[int]:
        is_short = len(part.text) <= LONGEST_REMEMBERED
        return list(self.remembered(part) if is_short else self.tokenise(part))

    def tokenise(self, part: TextPart) -> tuple[int, ...]:
        tokenizer = self.special if part.special_tokens else self.literal
        return tuple(tokenizer.encode(part.text, add_special_tokens=False).ids)


def special_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer lacks the special token {token}")
    return found


def build_renderer(tokenizer: Tokenizer, config: FlamingoConfig) -> PromptRenderer:
    """With the model's way to mark pictures and its rule of who sees which."""
    return PromptRenderer(tokenizer, config.tokens, MEDIA_RULES[config.cross_attention.media_rule])
