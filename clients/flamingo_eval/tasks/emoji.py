"""What the emoji model knows without examples, the tasks it infers from them, and RICES.

All answers are open-ended and greedy, right if word for word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flamingo_eval.asking import Asker
from flamingo_eval.examples import CAPTION, Example, Form, Plan, Question
from flamingo_eval.scoring import EXACT
from flamingo_eval.selection import shots_of
from flamingo_eval.tasks.base import Source, Task
from flamingo_eval.tasks.emoji_world import Picture, World, load_world

ASKED = Form.template("{question} {answer}")
KINDS = ("colour", "count", "yes_no", "what", "where")
Row = tuple[str, Form, Example]  # its group, its words, and the query


@dataclass(frozen=True)
class Direct(Source):
    """Queries without examples, `plan.num` of each group at most."""

    rows: tuple[Row, ...]

    async def questions(self, plan: Plan, asker: Asker) -> list[Question]:
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row[0], []).append(row)
        found = list[Question]()
        for group, rows in groups.items():
            dice = random.Random(f"{plan.seed}/{group}")
            for number, (_, form, query) in enumerate(dice.sample(rows, min(plan.num, len(rows)))):
                found.append(Question(form, (), query, group=group, case=f"{group}/{number}"))
        return found


def asked(pictures: Sequence[Picture], *kinds: str) -> Iterator[tuple[str, Picture, Example]]:
    """Each question of these kinds about these pictures, with its kind."""
    for picture in pictures:
        for question in picture.questions:
            if question.kind in kinds:
                fields = {"question": question.text}
                answers = (question.answer,)
                yield (
                    question.kind,
                    picture,
                    Example(picture.media, question.answer, answers, fields),
                )


def captioned(picture: Picture) -> Example:
    return Example(picture.media, picture.caption, (picture.caption,))


def names(world: World) -> Iterator[Row]:
    for _, _, query in asked(world.of("single", split="known"), "name"):
        yield "", ASKED, query


def captions(world: World) -> Iterator[Row]:
    for picture in world.of("pair", split="known"):
        yield "", CAPTION, captioned(picture)


def questions(world: World) -> Iterator[Row]:
    for kind, picture, query in asked(world.of("single", "count", "pair"), *KINDS):
        yield f"{kind}, {picture.split}", ASKED, query


def motions(world: World) -> Iterator[Row]:
    for _, picture, query in asked(world.of("film"), "motion"):
        yield picture.split, ASKED, query


def load_direct(folder: Path, rows: Callable[[World], Iterator[Row]]) -> Source:
    found = tuple(rows(load_world(folder)))
    if not found:
        raise ValueError(f"the emoji world's exam has nothing for {rows.__name__}")
    return Direct(found)


@dataclass(frozen=True)
class Inferred(Source):
    """`plan.shots` pictures with distinct answers of one kind, which nobody names; then another."""

    world: World

    async def questions(self, plan: Plan, asker: Asker) -> list[Question]:
        found = list[Question]()
        for group, form in self.world.hidden.items():
            labelled = self.labelled(group)
            for number in range(plan.num):
                dice = random.Random(f"{plan.seed}/{group}/{plan.shots}/{number}")
                answers = dice.sample(sorted(labelled), plan.shots)
                shots = tuple(dice.choice(labelled[answer]) for answer in answers)
                shown = {shot.media.key for shot in shots}
                rest = [
                    one
                    for one in labelled[dice.choice(sorted(labelled))]
                    if one.media.key not in shown
                ]
                query = dice.choice(rest)
                found.append(Question(form, shots, query, group=group, case=f"{group}/{number}"))
        return found

    def labelled(self, group: str) -> dict[str, list[Example]]:
        """Pictures by answer; only known objects have names."""
        pictures = self.world.of("single", "count")
        found: dict[str, list[Example]] = {}
        for picture in pictures:
            if answer := label(group, picture):
                example = Example(picture.media, answer, (answer,))
                found.setdefault(answer, []).append(example)
        return {answer: some for answer, some in found.items() if len(some) > 1}


def label(group: str, picture: Picture) -> str | None:
    """What a hidden task says of a picture. Raises ValueError for one nobody knows here."""
    if group == "name":
        is_named = picture.kind == "single" and picture.split == "known"
        return picture.objects[0] if is_named else None
    if group in ("colour", "count"):
        return picture.background if group == "colour" else picture.count
    raise ValueError(f"the hidden task {group!r} is not known here")


def load_inferred(folder: Path) -> Source:
    return Inferred(load_world(folder))


@dataclass(frozen=True)
class Retrieved(Source):
    """The same captions and questions behind the nearest examples, and behind others by chance."""

    world: World

    async def questions(self, plan: Plan, asker: Asker) -> list[Question]:
        pairs = [captioned(picture) for picture in self.world.of("pair", split="known")]
        found = await self.both("captions", CAPTION, pairs, plan.num, plan, asker)
        pictures = self.world.of("single", "count", "pair", split="known")
        for kind in KINDS:
            pool = [example for _, _, example in asked(pictures, kind)]
            share = plan.num // len(KINDS)
            found += await self.both("questions", ASKED, pool, share, plan, asker, kind)
        return found

    async def both(
        self,
        group: str,
        form: Form,
        pool: Sequence[Example],
        num: int,
        plan: Plan,
        asker: Asker,
        kind: str = "",
    ) -> list[Question]:
        dice = random.Random(f"{plan.seed}/{group}/{kind}")
        queries = dice.sample(pool, min(num, len(pool)))
        found = list[Question]()
        for select in ("RICES", "random"):
            shots = await shots_of(queries, pool, plan.shots, select.lower(), dice, asker)
            for number, (query, some) in enumerate(zip(queries, shots, strict=True)):
                question = Question(form, some, query, group=f"{group}, {select}")
                found.append(replace(question, case=f"{group}/{kind}/{number}"))
        return found


def load_retrieved(folder: Path) -> Source:
    return Retrieved(load_world(folder))


def _task(name: str, load: Callable[[Path], Source], shots: int = 0, max_tokens: int = 16) -> Task:
    return Task(
        name,
        EXACT,
        load,
        shots=(shots,),
        num=500,
        trials=1,
        max_tokens=max_tokens,
        takes_shots=False,
    )


TASKS = (
    _task("emoji-name", partial(load_direct, rows=names)),
    _task("emoji-captions", partial(load_direct, rows=captions), max_tokens=48),
    _task("emoji-questions", partial(load_direct, rows=questions)),
    _task("emoji-films", partial(load_direct, rows=motions)),
    _task("emoji-task-inference", load_inferred, shots=3),
    replace(
        _task("emoji-rices", load_retrieved, shots=4, max_tokens=48),
        pairs=(
            ("captions, RICES", "captions, random"),
            ("questions, RICES", "questions, random"),
        ),
    ),
)
