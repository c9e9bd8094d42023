"""What every task is, and the published kind: queries of one split, shots from another."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo_eval.asking import Asker
from flamingo_eval.examples import CAPTION, VQA, Data, Example, Form, Media, Plan, Question
from flamingo_eval.prompts import PAPER_SHOTS
from flamingo_eval.scoring import Metric
from flamingo_eval.selection import shots_of


class MissingFiles(Exception):
    """The files a task wants and did not find, one a line."""

    def __init__(self, task: str, missing: Sequence[Path]) -> None:
        wanted = "\n".join(f"  {path}" for path in missing)
        super().__init__(f"{task} wants files that are not there:\n{wanted}")
        self.missing = tuple(missing)


class Source(ABC):
    """A task's data, read; it draws questions from them."""

    @abstractmethod
    async def questions(self, plan: Plan, asker: Asker) -> list[Question]:
        """The same for the same plan. Raises ValueError for one it cannot follow."""


@dataclass(frozen=True)
class Task:
    """A benchmark. `load` raises MissingFiles; `shots` are examples, or examples `per_class`.

    `takes_shots`: another number of them may be asked for. `has_baselines`: they are labelled
    pictures, so that a nearest neighbour could answer. `pairs` are groups over the same queries,
    compared case by case.
    """

    name: str
    metric: Metric
    load: Callable[[Path], Source]
    shots: tuple[int, ...] = (0, 4, 8, 16, 32)
    num: int = 5000
    trials: int = 3
    max_tokens: int = 20
    num_beams: int = 1
    per_class: bool = False
    takes_shots: bool = True
    has_baselines: bool = False
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class FewShot(Source):
    """As in the paper and in OpenFlamingo's evaluation code."""

    data: Data
    form: Form

    async def questions(self, plan: Plan, asker: Asker) -> list[Question]:
        dice = random.Random(f"{plan.seed}/queries")
        some = min(plan.num or len(self.data.queries), len(self.data.queries))
        queries = dice.sample(self.data.queries, some)
        pool = self.pool(plan)
        if plan.shots == 0:
            return [self.zero_shot(query, pool, dice) for query in queries]
        chosen = await shots_of(queries, pool, plan.shots, plan.select, dice, asker)
        return [self.question(q, shots) for q, shots in zip(queries, chosen, strict=True)]

    def pool(self, plan: Plan) -> Sequence[Example]:
        support = self.data.support
        if not plan.pool or plan.pool >= len(support):
            return support
        return random.Random(f"{plan.seed}/pool").sample(support, plan.pool)

    def zero_shot(self, query: Example, pool: Sequence[Example], dice: random.Random) -> Question:
        """Two shots without pictures, which tell what is wanted and nothing of any picture: the
        paper's own for captions, two of the pool for questions. Closed ends need none."""
        if self.form == CAPTION:
            shots = tuple(Example(NO_MEDIA, caption) for caption in PAPER_SHOTS)
        elif self.form == VQA:
            shots = tuple(dice.sample(pool, 2))
        else:
            return self.question(query, ())
        return self.question(query, shots, is_text_only=True)

    def question(
        self, query: Example, shots: tuple[Example, ...], is_text_only: bool = False
    ) -> Question:
        candidates = self.data.candidates
        return Question(self.form, shots, query, candidates, is_text_only, case=query.media.key)


def _no_bytes() -> bytes:
    raise ValueError("this example has no picture")


NO_MEDIA = Media("none", _no_bytes)


def require(task: str, *paths: Path) -> None:
    """Raises MissingFiles naming all that are not there."""
    if missing := [path for path in paths if not path.exists()]:
        raise MissingFiles(task, missing)
