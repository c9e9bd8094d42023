"""What is asked about pictures, as runs of examples: the same for words standing in for pictures
(stage 2) and for pictures (stage 3), which a `Gallery` tells apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .documents import Example, made_up_words

BINDING_TEMPLATES = (
    ("This is a", " {}."),
    ("Output:", " {}"),
    ("A", " {}."),
    ("Question: What is this? Answer:", " {}"),
    ("Name:", " {}"),
)
COLOUR_QUESTIONS = (
    "Question: What color is the background? Answer:",
    "Question: What is the background color? Answer:",
    "Background:",
)
COUNT_QUESTIONS = (
    "Question: How many are there? Answer:",
    "Question: How many? Answer:",
    "Count:",
)
NAME_QUESTION = "Question: What is this? Answer:"
MOTION_QUESTION = "Question: How does it move? Answer:"
HIDDEN_PROMPT = "Output:"
HIDDEN_TASKS = ("colour", "count", "name")
SIDES = {"left_right": ("left", "right"), "above_below": ("top", "bottom")}
RELATIONS = {"left_right": "left of", "above_below": "above"}


@dataclass(frozen=True)
class Shown:
    """What can be said of a picture or film. `names` is empty for what has no good name, `count`
    None where nothing is there.

    `number` is its place in a pool of pictures; `code` stands for its looks where there is none.
    """

    names: tuple[str, ...]
    background: str
    count: str | None = "one"
    layout: str = "single"
    motion: str | None = None
    number: int = -1
    code: NDArray[np.float32] | None = None

    @property
    def is_pair(self) -> bool:
        return self.layout != "single"


class Gallery(Protocol):
    """Where pictures come from."""

    def classes(self, num: int) -> Sequence[Callable[[], Shown]]:
        """`num` kinds of things; each call shows another view of its own."""
        ...

    def single(self) -> Shown: ...
    def counted(self) -> Shown: ...
    def pair(self) -> Shown: ...
    def film(self) -> Shown: ...
    def empty(self) -> Shown: ...
    def name(self) -> str:
        """The name of anything, for questions whose answer is no."""
        ...

    def like(self, shown: Shown) -> Shown:
        """Another picture with the same object or background."""
        ...


def plural(name: str) -> str:
    ending = "es" if name.endswith(("s", "x", "ch", "sh")) else "s"
    return name + ending


def caption(shown: Shown) -> str:
    """ "two foxes on a blue background."; what has no good name is a thing."""
    names = shown.names or ("thing",)
    if shown.count is None:
        said = "nothing"
    elif len(names) == 2:
        said = f"{names[0]} {RELATIONS[shown.layout]} {names[1]}"
    else:
        said = f"{shown.count} {names[0] if shown.count == 'one' else plural(names[0])}"
    return f"{said} on a {shown.background} background."


def what_question(shown: Shown, which: int) -> tuple[str, str]:
    side = SIDES[shown.layout][which]
    place = f"at the {side}" if shown.layout == "above_below" else f"on the {side}"
    return f"Question: What is {place}? Answer:", f" {shown.names[which]}"


def where_question(shown: Shown, which: int) -> tuple[str, str]:
    question = f"Question: Where is the {shown.names[which]}? Answer:"
    return question, f" {SIDES[shown.layout][which]}"


def yes_no_question(shown: Shown, asked: str) -> tuple[str, str]:
    return f"Question: Is there a {asked}? Answer:", " yes" if asked in shown.names else " no"


def hidden_answer(shown: Shown, task: str) -> str:
    if task == "colour":
        return shown.background
    return shown.names[0] if task == "name" else str(shown.count)


def in_context_weights(labels: Sequence[int]) -> list[float]:
    """1 for a label that an earlier example has shown, 0 for its first showing."""
    seen: set[int] = set()
    weights = []
    for label in labels:
        weights.append(1.0 if label in seen else 0.0)
        seen.add(label)
    return weights


def episode_labels(num_ways: int, num_examples: int, rng: np.random.Generator) -> list[int]:
    """Every class once, then classes at random; half of the time all of it shuffled."""
    rest = rng.integers(num_ways, size=num_examples - num_ways)
    order = [*rng.permutation(num_ways).tolist(), *rest.tolist()]
    if rng.random() < 0.5:
        *before, last = order
        return [*rng.permutation(before).tolist(), last]
    return order


class Tasks:
    """Draws examples of every kind from a gallery."""

    def __init__(
        self, gallery: Gallery, rng: np.random.Generator, held_out_words: bool = False
    ) -> None:
        self.gallery, self.rng, self.held_out_words = gallery, rng, held_out_words
        self.kinds: dict[str, Callable[[], list[Example]]] = {
            "binding": self.binding,
            "hidden": self.hidden,
            "name": lambda: self.several(self.name),
            "caption": lambda: self.several(self.caption),
            "colour": lambda: self.several(self.colour),
            "count": lambda: self.several(self.count),
            "what": lambda: self.several(self.what),
            "where": lambda: self.several(self.where),
            "yes_no": lambda: self.several(self.yes_no),
            "motion": lambda: self.several(self.motion),
        }

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def binding(self) -> list[Example]:
        """Two to five ways; one document in six is long, as four examples of each class make it."""
        num_ways = int(self.rng.choice([2, 3, 4, 5], p=[0.4, 0.15, 0.15, 0.3]))
        is_long = self.rng.random() < 1 / 6
        more = self.rng.integers(2 * num_ways, 3 * num_ways) if is_long else self.rng.integers(2, 7)
        return self.episode(num_ways, num_ways + int(more))

    def episode(self, num_ways: int, num_examples: int) -> list[Example]:
        """Every class once, then classes again; made-up words name them."""
        order = episode_labels(num_ways, num_examples, self.rng)
        classes = self.gallery.classes(num_ways)
        words = self.labels(num_ways)
        prompt, answer = BINDING_TEMPLATES[self.rng.integers(len(BINDING_TEMPLATES))]
        return [
            Example(prompt, answer.format(words[c]), classes[c](), weight)
            for c, weight in zip(order, in_context_weights(order), strict=True)
        ]

    def labels(self, num: int) -> list[str]:
        """Made-up words; one time in six, in training, names of other things."""
        if not self.held_out_words and self.rng.random() < 1 / 6:
            names = {self.gallery.name() for _ in range(num)}
            if len(names) == num:
                return list(names)
        return made_up_words(num, self.rng, self.held_out_words)

    def hidden(self, num_shots: int | None = None, task: str | None = None) -> list[Example]:
        """Nothing but examples tells what is asked for; the first shows it and is not learned."""
        task = task or self.pick(HIDDEN_TASKS)
        shots = int(self.rng.integers(2, 6)) if num_shots is None else num_shots
        shown = [self.gallery.single() if task == "name" else self.gallery.counted()
                 for _ in range(shots + 1)]  # fmt: skip
        return [
            Example(HIDDEN_PROMPT, f" {hidden_answer(picture, task)}", picture, float(index > 0))
            for index, picture in enumerate(shown)
        ]

    def several(self, draw: Callable[[Shown | None], Example]) -> list[Example]:
        """One to four examples; half of the time a few of them are like the last."""
        num = int(self.rng.choice([1, 2, 3, 5], p=[0.45, 0.15, 0.15, 0.25]))
        last = draw(None)
        are_alike = self.rng.random() < 0.5
        before = [draw(self.gallery.like(last.picture) if are_alike else None)
                  for _ in range(num - 1)]  # fmt: skip
        return [*before, last]

    def picture(self, pair: float, empty: float, other: Callable[[], Shown] | None = None) -> Shown:
        """Of two things with this chance, of nothing with that, or else one or several alike."""
        draw = self.rng.random()
        if draw < pair:
            return self.gallery.pair()
        return self.gallery.empty() if draw < pair + empty else (other or self.gallery.counted)()

    def name(self, shown: Shown | None = None) -> Example:
        shown = shown or self.gallery.single()
        prompt, answer = BINDING_TEMPLATES[self.rng.choice([0, 3, 3, 4])]
        return Example(prompt, answer.format(shown.names[0]), shown)

    def caption(self, shown: Shown | None = None) -> Example:
        if shown is None:
            shown = self.picture(pair=0.6, empty=0.03)
        return Example(HIDDEN_PROMPT, f" {caption(shown)}", shown)

    def colour(self, shown: Shown | None = None) -> Example:
        if shown is None:
            shown = self.picture(pair=0.5, empty=0.12)
        return Example(self.pick(COLOUR_QUESTIONS), f" {shown.background}", shown)

    def count(self, shown: Shown | None = None) -> Example:
        is_countable = shown is not None and not shown.is_pair and shown.count is not None
        shown = shown if shown is not None and is_countable else self.gallery.counted()
        return Example(self.pick(COUNT_QUESTIONS), f" {shown.count}", shown)

    def what(self, shown: Shown | None = None) -> Example:
        shown = shown if shown is not None and shown.is_pair else self.gallery.pair()
        return Example(*what_question(shown, int(self.rng.integers(2))), shown)

    def where(self, shown: Shown | None = None) -> Example:
        shown = shown if shown is not None and shown.is_pair else self.gallery.pair()
        return Example(*where_question(shown, int(self.rng.integers(2))), shown)

    def yes_no(self, shown: Shown | None = None) -> Example:
        if shown is None:
            shown = self.picture(pair=0.5, empty=0.03, other=self.gallery.single)
        is_there = bool(shown.names) and self.rng.random() < 0.5
        return Example(
            *yes_no_question(shown, self.pick(shown.names) if is_there else self.gallery.name()),
            shown,
        )

    def motion(self, shown: Shown | None = None) -> Example:
        shown = shown if shown is not None and shown.motion else self.gallery.film()
        assert shown.motion is not None
        return Example(MOTION_QUESTION, f" {shown.motion}", shown)
