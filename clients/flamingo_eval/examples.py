"""What a benchmark is made of: media, examples, questions about one of them, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flamingo_client import ImagePart, VideoPart, image, video


@dataclass(frozen=True)
class Media:
    """A picture or a film. `key` names it in caches; its bytes are read when they are needed."""

    key: str
    read: Callable[[], bytes] = field(compare=False, repr=False)
    is_film: bool = False
    fps: float | None = None
    max_frames: int | None = None

    @classmethod
    def of(cls, path: Path) -> Media:
        return cls(str(path), path.read_bytes)

    def part(self) -> ImagePart | VideoPart:
        """Raises OSError where the file cannot be read, ValueError where it is neither."""
        if self.is_film:
            return video(self.read(), fps=self.fps, max_frames=self.max_frames)
        return image(self.read())


@dataclass(frozen=True)
class Example:
    """`answer` is what it shows as a shot; `references` are all answers the metric knows."""

    media: Media
    answer: str
    references: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)

    def seen_as(self, media: Media) -> Example:
        return replace(self, media=media)


@dataclass(frozen=True)
class Form:
    """How a question is put: a task of the server's, or a template, and the name of its answer."""

    task: str
    answer: str
    is_template: bool = False

    @classmethod
    def template(cls, text: str) -> Form:
        """`{answer}` in it is what the model writes."""
        return cls(text, "answer", is_template=True)


CAPTION = Form("caption", "caption")
VQA = Form("vqa", "answer")
CLASSIFY = Form("classify", "label")
MEMES = Form("hateful_memes", "label")


@dataclass(frozen=True)
class Question:
    """A query behind its shots. With `candidates` it is closed-ended: one of them is chosen.

    `group` is the row of the table it counts in, `case` names the query, so that rows over the same
    queries can be compared pair by pair. `is_text_only`: the shots have no pictures.
    """

    form: Form
    shots: tuple[Example, ...]
    query: Example
    candidates: tuple[str, ...] = ()
    is_text_only: bool = False
    group: str = ""
    case: str = ""


@dataclass(frozen=True)
class Answer:
    """`text` is what was written, or the likeliest candidate; `scores` are those of candidates."""

    text: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A question that got no answer, though it was asked twice."""

    reason: str


@dataclass(frozen=True)
class Asked:
    """A question that was answered."""

    question: Question
    answer: Answer


@dataclass(frozen=True)
class Plan:
    """What one run of a task draws: `shots`, or examples per class, chosen by `select`."""

    shots: int
    select: str
    seed: int
    num: int
    pool: int  # examples that shots are drawn from; 0: all


@dataclass(frozen=True)
class Data:
    """Shots come from `support`; with `candidates` the task is closed-ended."""

    support: Sequence[Example]
    queries: Sequence[Example]
    candidates: tuple[str, ...] = ()
