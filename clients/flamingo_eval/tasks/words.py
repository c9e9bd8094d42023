"""Made-up words for pictures: each episode names some things with a few examples and asks for one.

Held-out emoji of distinct families, and handwritten digits (scikit-learn's, which no stage has
seen); the same with every picture replaced by one grey one tells what the eyes are for.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from PIL import Image

from flamingo_eval.asking import Asker
from flamingo_eval.examples import Example, Media, Plan, Question
from flamingo_eval.scoring import EXACT, TOP1
from flamingo_eval.tasks.base import Source, Task
from flamingo_eval.tasks.emoji_world import World, load_world

SIZE = 64
DIGIT_LEVELS = 16  # of a pixel in scikit-learn's digits


@dataclass(frozen=True)
class Things:
    """Pictures of each thing; things of one family never meet in an episode."""

    pictures: Mapping[str, Sequence[Media]]
    family: Mapping[str, str]

    def draw(self, num: int, at_least: int, dice: random.Random) -> list[str]:
        """Things of distinct families with enough pictures. Raises ValueError if there are not."""
        enough = [name for name, some in self.pictures.items() if len(some) >= at_least]
        by_family = {self.family[name]: name for name in dice.sample(enough, len(enough))}
        if len(by_family) < num:
            raise ValueError(
                f"{num} families with {at_least} pictures of one thing are wanted; "
                f"there are {len(by_family)}"
            )
        return dice.sample(list(by_family.values()), num)


@dataclass(frozen=True)
class Episodes(Source):
    """`plan.shots` examples of each thing in any order, then another picture of one of them."""

    world: World
    things: Things
    ways: tuple[int, ...]
    is_open: bool = False
    is_blind: bool = False

    async def questions(self, plan: Plan, asker: Asker) -> list[Question]:
        return [
            self.episode(ways, number, plan) for ways in self.ways for number in range(plan.num)
        ]

    def episode(self, ways: int, number: int, plan: Plan) -> Question:
        """The same blinded or not, open-ended or not: they are compared pair by pair."""
        dice = random.Random(f"{plan.seed}/{ways}/{plan.shots}/{number}")
        things = self.things.draw(ways, plan.shots + 1, dice)
        words = self.world.some_words(ways, dice)
        shots, spare = list[Example](), list[Example]()
        for thing, word in zip(things, words, strict=True):
            some = dice.sample(self.things.pictures[thing], plan.shots + 1)
            *shown, last = (Example(self.look(one), word) for one in some)
            shots += shown
            spare.append(last)
        dice.shuffle(shots)
        query, form = dice.choice(spare), dice.choice(self.world.forms)
        candidates = () if self.is_open else tuple(words)
        case = f"{plan.seed}/{number}"
        group = f"{ways}-way" if len(self.ways) > 1 else ""  # else the task's name says it
        return Question(form, tuple(shots), query, candidates, group=group, case=case)

    def look(self, media: Media) -> Media:
        return GREY if self.is_blind else media


def grey() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


GREY = Media("grey", grey)


def held_out(world: World) -> Things:
    pictures: dict[str, list[Media]] = {}
    family: dict[str, str] = {}
    for picture in world.of("single", split="held_out"):
        name = picture.objects[0]
        pictures.setdefault(name, []).append(picture.media)
        family[name] = picture.families[0] if picture.families else name
    return Things(pictures, family)


@lru_cache(maxsize=1)
def handwritten() -> Things:
    """scikit-learn's 1,797 digits of 8 × 8, dark on light, smoothly enlarged to 64 × 64."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found = load_digits()
    pictures: dict[str, list[Media]] = {}
    for number, (pixels, digit) in enumerate(zip(found.images, found.target, strict=True)):
        light = (255 - pixels * 255 / DIGIT_LEVELS).round().astype("uint8")
        media = Media(f"digit-{number}", partial(enlarged, light.tobytes()))
        pictures.setdefault(str(digit), []).append(media)
    return Things(pictures, {name: name for name in pictures})


def enlarged(levels: bytes) -> bytes:
    small = Image.frombytes("L", (8, 8), levels)
    file = io.BytesIO()
    small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB").save(file, "PNG")
    return file.getvalue()


def load_emoji(
    folder: Path, ways: tuple[int, ...], is_open: bool = False, is_blind: bool = False
) -> Source:
    world = load_world(folder)
    return Episodes(world, held_out(world), ways, is_open, is_blind)


def load_digits_task(folder: Path, ways: tuple[int, ...]) -> Source:
    return Episodes(load_world(folder), handwritten(), ways)


def _task(name: str, load: partial[Source], is_open: bool = False) -> Task:
    return Task(
        name,
        EXACT if is_open else TOP1,
        load,
        shots=(1, 2, 4),
        num=500,
        trials=1,
        per_class=True,
        has_baselines=True,
    )


TASKS = (
    *(_task(f"emoji-words-{n}way", partial(load_emoji, ways=(n,))) for n in (2, 5)),
    *(
        _task(f"emoji-words-{n}way-blind", partial(load_emoji, ways=(n,), is_blind=True))
        for n in (2, 5)
    ),
    _task("emoji-words-open", partial(load_emoji, ways=(2, 5), is_open=True), is_open=True),
    *(_task(f"digits-{n}way", partial(load_digits_task, ways=(n,))) for n in (2, 5)),
)
