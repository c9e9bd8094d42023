"""A document → one row of tokens: which media each token sees, and which tokens are learned.

The wording around pictures and the ends of chunks are the model family's own, as in serving. What
is learned are `learned` texts and the end-of-chunk that closes each of them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from tokenizers import Tokenizer

from .. import prompt
from ..config import FlamingoConfig
from ..cross_attention import MEDIA_RULES, MarkIds
from ..prompt import PromptError, PromptRenderer
from .config import DatasetConfig
from .data.document import BadRecord, Document, MediaPart, TextPart

BEGIN, END = "\ufdd0", "\ufdd1"
"""Around learned text on its way through the family's rules; Unicode keeps them out of texts."""


class LearnedId(int):
    """A token id that is to be predicted."""


@dataclass(frozen=True)
class Row:
    """`media_index` as in `prompt.RenderedPrompt`; `media` are those whose marks are in `ids`."""

    ids: tuple[int, ...]
    media_index: tuple[int, ...]
    learned: tuple[bool, ...]
    media: tuple[MediaPart, ...] = ()


class RowWriter:
    """`end` closes what was learned: the family's end of a chunk, if no other is given.

    Where the document ends with it, the family's end of text follows, if that is another token and
    the dataset wants it: `<EOC><EOS>` in the paper (section A.3.2) and in flamingo-mini's training.
    OpenFlamingo's and Otter's configs have one token for both, so theirs ends a document alone.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: FlamingoConfig, end: str | None = None
    ) -> None:
        self.end = end or config.tokens.end_of_chunk
        self.end_of_text = config.tokens.end_of_text
        rule = MEDIA_RULES[config.cross_attention.media_rule]
        self.renderer = LearningRenderer(tokenizer, config.tokens, rule)

    def write(self, document: Document, dataset: DatasetConfig, rng: np.random.Generator) -> Row:
        """At most `dataset.length` tokens and `max_media` media, from one of `starts` on.

        Raises BadRecord for what the family cannot write, and where nothing is left to learn.
        """
        sees_next = rng.random() < dataset.p_next
        has_space = rng.random() < dataset.leading_space
        parts, media = self.parts(document, dataset, has_space)
        tokens = cache(lambda start: self.tokens(parts[start:], dataset.max_media))
        try:
            for start in starts(parts, tokens, dataset, rng):
                ids = tokens(start)[: dataset.length]
                if any(isinstance(i, LearnedId) for i in ids[1:]):
                    return self.row(ids, media[len(media_places(parts[:start])) :], sees_next)
        except PromptError as error:
            raise BadRecord(f"{document.place}: {error}") from error
        raise BadRecord(f"{document.place}: nothing to learn within {dataset.length} tokens")

    def tokens(self, parts: Sequence[prompt.Part], max_media: int) -> list[int]:
        """Of all that stands before one media too many; what is learned is `LearnedId`s."""
        places = media_places(parts)
        kept = parts[: places[max_media]] if len(places) > max_media else parts
        return self.renderer.render(kept).token_ids if kept else []

    def row(self, tokens: Sequence[int], media: Sequence[MediaPart], sees_next: bool) -> Row:
        """`media` begin with the first that has a mark in `tokens`."""
        ids, marks = [int(i) for i in tokens], self.renderer.marks
        learned = tuple(isinstance(i, LearnedId) for i in tokens)
        shown = media[: sum(i in marks.media for i in ids)]
        return Row(tuple(ids), tuple(self.index(ids, marks, sees_next)), learned, tuple(shown))

    def index(self, ids: Sequence[int], marks: MarkIds, sees_next: bool) -> list[int]:
        """Who sees which: the family's rule, or the paper's p_next, text sees what follows it."""
        rule = MEDIA_RULES["legacy"] if sees_next else self.renderer.rule
        return rule.prompt(ids, marks)

    def parts(
        self, document: Document, dataset: DatasetConfig, has_space: bool
    ) -> tuple[list[prompt.Part], list[MediaPart]]:
        """A chunk ends behind learned text, before the next media and at the end of the document;
        texts side by side are one, so that they are tokenised as one."""
        chunks, media = Chunks(self.end), list[MediaPart]()
        for part in document.parts:
            if isinstance(part, TextPart):
                chunks.add(part.text, part.learned or dataset.learn_questions, has_space)
            else:
                chunks.show()
                media.append(part)
        chunks.close()
        if dataset.end_of_text and chunks.is_ended and self.end_of_text != self.end:
            chunks.parts.append(special(self.end_of_text))
        return chunks.parts, media


def starts(
    parts: Sequence[prompt.Part],
    tokens: Callable[[int], list[int]],
    dataset: DatasetConfig,
    rng: np.random.Generator,
) -> list[int]:
    """Where in `parts` a row may begin, in the order to try; `tokens(start)` are those from there.

    What fits begins at its beginning, and so does all with the window `first`. Else, as the paper
    takes "a random subsequence" of a document (section 2.4), the beginning and every media are as
    likely, up to the first from which the rest fits: those behind would only make shorter rows.
    """

    def fits(start: int) -> bool:
        num_media = len(media_places(parts[start:]))
        return num_media <= dataset.max_media and len(tokens(start)) <= dataset.length

    if dataset.window == "first" or fits(0):
        return [0]
    found = sorted({0, *media_places(parts)})
    last = bisect_left(found, True, key=fits)
    order: list[int] = rng.permutation(found[: last + 1]).tolist()
    return order


def media_places(parts: Sequence[prompt.Part]) -> list[int]:
    return [at for at, part in enumerate(parts) if isinstance(part, prompt.MediaPart)]


class Chunks:
    """Gathers the parts of a prompt."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.parts: list[prompt.Part] = []
        self.text, self.is_learned, self.is_ended = "", False, False

    def add(self, text: str, learned: bool, has_space: bool) -> None:
        text = re.sub(f"[{BEGIN}{END}]", "", text)
        follows_media = bool(self.parts) and isinstance(self.parts[-1], prompt.MediaPart)
        if has_space and follows_media and not self.text and not text[:1].isspace():
            text = f" {text}"
        self.text += f"{BEGIN}{text}{END}" if learned and text.strip() else text
        self.is_learned = learned if text.strip() else self.is_learned

    def show(self) -> None:
        self.close()
        self.parts.append(prompt.MediaPart())

    def close(self) -> None:
        if self.text:
            self.parts.append(prompt.TextPart(self.text))
        if self.is_learned:
            self.parts.append(special(self.end))
        self.is_ended, self.text, self.is_learned = self.is_learned, "", False


def special(token: str) -> prompt.TextPart:
    return prompt.TextPart(f"{BEGIN}{token}{END}", special_tokens=True)


class LearningRenderer(PromptRenderer):
    """A family's renderer; tokens that touch marked text come out as `LearnedId`s."""

    def encode(self, part: prompt.TextPart) -> list[int]:
        text, spans = unmark(part.text)
        tokenizer = self.special if part.special_tokens else self.literal
        encoding = tokenizer.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [LearnedId(i) if touches(place, spans) else i for i, place in found]


def unmark(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text itself, and where in it the marked spans are."""
    plain, spans, begin = "", list[tuple[int, int]](), 0
    for piece in re.split(f"([{BEGIN}{END}])", text):
        if piece == BEGIN:
            begin = len(plain)
        elif piece == END:
            spans.append((begin, len(plain)))
        else:
            plain += piece
    return plain, spans


def touches(place: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    first, last = place[0], max(place[1], place[0] + 1)  # some tokenizers give blanks no width
    return any(first < end and last > begin for begin, end in spans)
