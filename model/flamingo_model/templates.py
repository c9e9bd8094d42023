"""Examples and a query → the parts of a prompt, in the wording a model family was trained with.

A template is one example as text: `{name}` is a field, `{{` and `}}` are braces, `<image>` is where
the media stands. The query is the same text up to its last field, which the model is to write.

Field values never are anything but text. Adjacent text becomes one part, so that it is tokenised as
one, as the families' own code does; only tokens that the template itself writes are special.
What stands around a picture (IDEFICS' `<fake_token_around_image>`) or opens a prompt (`<s>`) is not
written here: it belongs to every picture and prompt, however they came about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .config import SpecialTokens
from .prompt import MediaPart, Part, TextPart

IMAGE, END = "<image>", "<|endofchunk|>"  # as templates write them; a checkpoint has its own
MARKERS = ("<answer>", "<end_of_utterance>")  # of single families
RESERVED = ("image", "video", "fps", "max_frames", "turns")
MAX_FIELDS = 32  # bounds how much longer than its values a prompt can be
PAPER_SHOTS = ("This is a cat wearing sunglasses.", "Three elephants walking in the savanna.")

Values = Mapping[str, str]


class TemplateError(ValueError):
    """`place` names what to change: `examples[1].question`, `query.turns[0].answer`, `task`."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


class Wording(NamedTuple):
    """One task: an example, what opens the prompt, and a dialogue's turns after the first."""

    example: str
    opening: str = ""
    turn: str = ""


PAPER = {
    "caption": Wording("<image> Output: {caption}<|endofchunk|>"),
    "vqa": Wording("<image> Question: {question} Answer: {answer}<|endofchunk|>"),
    "classify": Wording("<image> Output: {label}<|endofchunk|>"),
    "hateful_memes": Wording(
        '<image> is an image with written: "{text}" on it. Is it hateful? '
        "Answer: {label}<|endofchunk|>"
    ),
    "dialogue": Wording(
        "<image> Question: {question} Answer: {answer}",
        turn=" Question: {question} Answer: {answer}",
    ),
}
"""Alayrac et al. 2022, appendix on few-shot prompts; `<BOS>` left out."""

OPENFLAMINGO = {
    "caption": Wording("<image>Output:{caption}<|endofchunk|>\n"),
    "vqa": Wording("<image>Question:{question} Short answer:{answer}<|endofchunk|>\n"),
    "classify": Wording("<image>Output:{label}<|endofchunk|>"),
    "hateful_memes": Wording(
        "<image>is an image with: '{text}' written on it. Is it hateful? "
        "Answer:{label}<|endofchunk|>"
    ),
    "dialogue": Wording(
        "<image>Question:{question} Short answer:{answer}",
        turn=" Question:{question} Short answer:{answer}",
    ),
}
"""Its evaluation code, with the line ends after caption and VQA shots; dialogue follows its VQA."""

OTTER = {
    **OPENFLAMINGO,
    "caption": Wording(
        "<image>User: What does the image describe? GPT:<answer> {caption}<|endofchunk|>"
    ),
    "vqa": Wording("<image>User: {question} GPT:<answer> {answer}<|endofchunk|>"),
    "dialogue": Wording(
        "<image>User: {question} GPT:<answer> {answer}<|endofchunk|>",
        turn="User: {question} GPT:<answer> {answer}<|endofchunk|>",
    ),
}
"""Its demos; classification as OpenFlamingo, which it was tuned from."""

IDEFICS = {
    "caption": Wording("User:<image>Describe this image.\nAssistant: {caption}\n"),
    "vqa": Wording(
        "<image>Question: {question} Answer: {answer}\n",
        opening="Instruction: Provide an answer to the question. Use the image to answer.\n",
    ),
    "classify": Wording("<image>Category: {label}\n"),
    "hateful_memes": Wording(
        '<image>is an image with written: "{text}" on it. Is it hateful? Answer: {label}\n'
    ),
    "dialogue": Wording(
        "User:<image>{question}<end_of_utterance>\nAssistant: {answer}<end_of_utterance>",
        turn="\nUser: {question}<end_of_utterance>\nAssistant: {answer}<end_of_utterance>",
    ),
}
"""The transformers guide to IDEFICS, whose examples end in a line end; memes as in the paper."""

FLAMINGO_MINI = {**PAPER, "caption": Wording("<image>{caption}<|endofchunk|>")}
"""It was trained on bare captions; the rest is the paper's wording."""


def _instruction(instruction: str, answer: str) -> str:
    return f"\n\n### Instruction:\n{instruction}\n\n### Response:\n{{{answer}}}"


def _multimodal_gpt(instruction: str, answer: str) -> Wording:
    """The frame of its `app.py`."""
    return Wording(
        "\n\n### Image:\n<image>" + _instruction(instruction, answer) + END,
        opening="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
    )


MULTIMODAL_GPT = {
    "caption": _multimodal_gpt("Describe the image.", "caption"),
    "vqa": _multimodal_gpt("{question}", "answer"),
    "classify": _multimodal_gpt("What is in the image?", "label"),
    "hateful_memes": _multimodal_gpt(
        'The image has written: "{text}" on it. Is it hateful? Answer yes or no.', "label"
    ),
    "dialogue": Wording(
        "\n\n### Image:\n<image>" + _instruction("{question}", "answer"),
        opening=_multimodal_gpt("", "").opening,
        turn=_instruction("{question}", "answer"),
    ),
}
"""The instructions of caption, classify and hateful_memes are ours: it published none."""

EMOJI = {
    "caption": Wording("<image>Output: {caption}<|endofchunk|>"),
    "vqa": Wording("<image>Question: {question} Answer: {answer}<|endofchunk|>"),
    "classify": Wording("<image>This is a {label}.<|endofchunk|>"),
    "hateful_memes": Wording(
        '<image>is an image with written: "{text}" on it. Is it hateful? '
        "Answer: {label}<|endofchunk|>"
    ),
    "dialogue": Wording(
        "<image>Question: {question} Answer: {answer}",
        turn=" Question: {question} Answer: {answer}",
    ),
}
"""What flamingo-emoji was trained on, see training/emoji/tasks.py; it has seen no dialogue."""

FAMILIES: dict[str, dict[str, Wording]] = {
    "paper": PAPER,
    "openflamingo": OPENFLAMINGO,
    "otter": OTTER,
    "idefics": IDEFICS,
    "flamingo_mini": FLAMINGO_MINI,
    "multimodal_gpt": MULTIMODAL_GPT,
    "emoji": EMOJI,
}
_BRACES = r"(?P<brace>\{\{|\}\})|\{(?P<field>[A-Za-z_][A-Za-z0-9_]{0,63})\}|(?P<bad>[{}])"
ZERO_SHOT_TASKS = ("caption", "vqa")


class Piece(NamedTuple):
    """What a template is made of; `text` of a field is its name."""

    kind: Literal["text", "special", "field", "media"]
    text: str = ""


@dataclass(frozen=True)
class Template:
    """A parsed task: `render` gives the parts of a prompt."""

    example: tuple[Piece, ...]
    opening: tuple[Piece, ...]
    turn: tuple[Piece, ...]
    end: Piece
    closes_itself: bool = True  # else `end` is put after each example
    is_custom: bool = False

    @property
    def is_dialogue(self) -> bool:
        return bool(self.turn)

    @property
    def fields(self) -> tuple[str, ...]:
        """In the order of their first appearance; the last one is the answer."""
        return tuple(dict.fromkeys(p.text for p in self.example if p.kind == "field"))

    @property
    def answer(self) -> str | None:
        """The field that the query leaves to the model."""
        return self.fields[-1] if self.fields else None

    def render(
        self,
        examples: Sequence[Sequence[Values]],
        query: Sequence[Values],
        text_only_examples: bool = False,
    ) -> list[Part]:
        """Each example and the query as its turns, one unless this is a dialogue.

        With `text_only_examples` they have no media: the zero-shot prompt of the paper and of
        OpenFlamingo. Raises TemplateError for a field that is missing or unknown.
        """
        parts = _Parts()
        parts.add(self.opening, {})
        for number, turns in enumerate(examples):
            self._add(parts, turns, f"examples[{number}]", text_only=text_only_examples)
        self._add(parts, query, "query", is_query=True)
        return parts.all()

    def _add(
        self,
        parts: _Parts,
        turns: Sequence[Values],
        place: str,
        is_query: bool = False,
        text_only: bool = False,
    ) -> None:
        if not turns:
            raise TemplateError("a dialogue needs at least one turn", f"{place}.turns")
        for number, values in enumerate(turns):
            pieces = self.turn if number else self.example
            pieces = _without_media(pieces) if text_only else pieces
            where = f"{place}.turns[{number}]" if self.is_dialogue else place
            if is_query and number == len(turns) - 1:
                pieces = self._open(pieces, values, where)
            else:
                self._check(values, where, self.fields)
            parts.add(pieces, values)
        if not (self.closes_itself or is_query):
            parts.add((self.end,), {})

    def _open(self, pieces: tuple[Piece, ...], values: Values, where: str) -> tuple[Piece, ...]:
        """The query's pieces: up to the answer, or all if a custom template's query has it."""
        if self.is_custom and (self.answer is None or self.answer in values):
            self._check(values, where, self.fields)
            return pieces[:-1] if pieces[-1] == self.end else pieces
        if self.answer in values:
            message = f"{where} leaves out {self.answer!r}: the model writes it"
            raise TemplateError(message, f"{where}.{self.answer}")
        self._check(values, where, [name for name in self.fields if name != self.answer])
        return _rstrip(pieces[: pieces.index(Piece("field", self.answer or ""))])

    def _check(self, values: Values, where: str, wanted: Iterable[str]) -> None:
        wanted = list(wanted)
        for name in wanted:
            if name not in values:
                raise TemplateError(f"{where} needs the field {name!r}", f"{where}.{name}")
        for name in values:
            if name not in wanted:
                known = ", ".join(map(repr, wanted)) or "none"
                message = f"{where} has no field {name[:80]!r}; its fields are: {known}"
                raise TemplateError(message, f"{where}.{name}")


class Templates:
    """The templates of one checkpoint: its family's wording, its own special tokens.

    `special` are the tokenizer's special tokens as text. Raises ValueError for an unknown family.
    """

    def __init__(self, family: str, tokens: SpecialTokens, special: Iterable[str]) -> None:
        if family not in FAMILIES:
            raise ValueError(f"templates {family!r} is not known; known: {sorted(FAMILIES)}")
        self.wordings = FAMILIES[family]
        self.tokens = tokens
        self.end = Piece("special", tokens.end_of_chunk)
        self.special = frozenset({*special, tokens.end_of_chunk}) - {tokens.image}

    def task(self, name: str) -> Template:
        """Raises TemplateError for an unknown task, or one this tokenizer cannot write."""
        if name not in self.wordings:
            known = ", ".join(map(repr, self.wordings))
            raise TemplateError(f"task {name[:80]!r} is not known; known: {known}", "task")
        example, opening, turn = self.wordings[name]
        for marker in MARKERS:
            if marker in example + turn and marker not in self.special:
                raise TemplateError(f"{name} needs {marker}, which the tokenizer lacks", "task")
        closes_itself = not turn or turn.endswith((END, *MARKERS))
        pieces = self.parse(example), self.parse(opening), self.parse(turn)
        return Template(*pieces, self.end, closes_itself)

    def custom(self, text: str, place: str = "task.template") -> Template:
        """A client's own template. Without `<image>` the media stands first; without an
        end-of-chunk token one closes each example.

        Raises TemplateError for anything in braces but a plain name.
        """
        pieces = self.parse(text, place)
        if sum(piece.kind == "media" for piece in pieces) > 1:
            raise TemplateError("a template has one <image> at most", place)
        if sum(piece.kind == "field" for piece in pieces) > MAX_FIELDS:
            raise TemplateError(f"a template has {MAX_FIELDS} fields at most", place)
        if taken := [p.text for p in pieces if p.kind == "field" and p.text in RESERVED]:
            raise TemplateError(f"{taken[0]!r} cannot name a field: it is the media's", place)
        if not any(piece.kind == "media" for piece in pieces):
            pieces = (Piece("media"), *pieces)
        return Template(pieces, (), (), self.end, self.end in pieces, is_custom=True)

    def parse(self, text: str, place: str = "task") -> tuple[Piece, ...]:
        """Raises TemplateError for a brace that is neither doubled nor around a plain name."""
        images, ends = {IMAGE, self.tokens.image}, {END}
        special = sorted({*images, *ends, *self.special}, key=len, reverse=True)
        tokens = "|".join(map(re.escape, special))
        pattern = rf"(?P<token>{tokens})|" + _BRACES
        pieces, at = [], 0
        for found in re.finditer(pattern, text):
            pieces.append(Piece("text", text[at : found.start()]))
            at = found.end()
            token, brace, name, bad = found.group("token", "brace", "field", "bad")
            if bad:
                raise TemplateError(
                    f"a lone brace at character {found.start()}: a field is {{name}}, of letters, "
                    "digits and underscores alone; a brace as text is written twice",
                    place,
                )
            if token in images:
                pieces.append(Piece("media"))
            elif token:
                pieces.append(self.end if token in ends else Piece("special", token))
            else:
                pieces.append(Piece("field", name) if name else Piece("text", brace[0]))
        pieces.append(Piece("text", text[at:]))
        return tuple(piece for piece in pieces if piece != Piece("text"))


class _Parts:
    """Gathers parts; text and field values that touch become one."""

    def __init__(self) -> None:
        self._done: list[Part] = []
        self._text: list[str] = []

    def add(self, pieces: Iterable[Piece], values: Values) -> None:
        for kind, text in pieces:
            if kind == "media":
                self._close(MediaPart())
            elif kind == "special":
                self._close(TextPart(text, special_tokens=True))
            else:
                self._text.append(values.get(text, "") if kind == "field" else text)

    def all(self) -> list[Part]:
        self._close()
        return self._done

    def _close(self, *more: Part) -> None:
        if text := "".join(self._text):
            self._done.append(TextPart(text))
        self._text.clear()
        self._done += more


def _rstrip(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Without the blank before the answer: it is the answer's own, in most tokenizers."""
    if not pieces or pieces[-1].kind != "text":
        return pieces
    return (*pieces[:-1], Piece("text", pieces[-1].text.rstrip(" ")))


def _without_media(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The shot as words alone; the blank after the media goes with it."""
    kept: list[Piece] = []
    for before, piece in zip((None, *pieces), pieces, strict=False):
        if before and before.kind == "media" and piece.kind == "text":
            piece = Piece("text", piece.text.lstrip(" "))
        if piece.kind != "media":
            kept.append(piece)
    return tuple(kept)
