"""Runs tasks against a server: draw questions, ask them all, mark the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from flamingo_eval.asking import Asker
from flamingo_eval.baselines import by_features, by_pixels, chance
from flamingo_eval.examples import Asked, Failure, Plan, Question
from flamingo_eval.metrics.intervals import Interval, paired
from flamingo_eval.tasks.base import Source, Task

Begin = Callable[[str, int], Callable[[], None]]  # a bar of so many steps → one step


@dataclass(frozen=True)
class Choice:
    """What the caller wants otherwise than the task has it: None leaves it to the task."""

    data: Path
    shots: tuple[int, ...] | None = None
    num: int | None = None
    trials: int | None = None
    select: str = "random"
    seed: int = 0
    pool: int = 2048


@dataclass(frozen=True)
class Difference:
    """The mean of one group's values less those of another, over the same queries."""

    of: str
    to: str
    mean: float
    interval: Interval
    num: int


@dataclass(frozen=True)
class Row:
    """One figure: the mean over trials, their standard deviation (None for one trial), and the 95%
    interval over the cases of all trials; in the metric's own unit.

    `failures` got no answer and are in no figure: `failed` counts them by reason.
    """

    task: str
    group: str
    metric: str
    scale: float
    shots: int
    per_class: bool
    select: str
    value: float
    deviation: float | None
    interval: Interval
    trials: tuple[float, ...]
    num: int
    failed: dict[str, int] = field(default_factory=dict)
    chance: float | None = None
    pixels: float | None = None
    features: float | None = None
    less_features: Difference | None = None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """All rows of a task, and the comparisons between them; or the `problem` that let none be."""

    task: str
    rows: list[Row]
    differences: list[Difference]
    problem: str | None = None


@dataclass(frozen=True)
class Trial:
    """What was asked in one trial, and answered; `values` is of the metric, one each."""

    asked: list[Asked]
    failures: list[tuple[Question, Failure]]

    def groups(self) -> list[str]:
        return [*(one.question.group for one in self.asked), *(q.group for q, _ in self.failures)]


async def run_task(task: Task, choice: Choice, asker: Asker, begin: Begin) -> Result:
    """Raises MissingFiles; what cannot be drawn or marked is the result's problem."""
    source, problem = task.load(choice.data), None
    rows, differences = list[Row](), list[Difference]()
    for shots in numbers_of_shots(task, choice):
        try:
            trials = await run_trials(task, source, shots, choice, asker, begin)
            for group in dict.fromkeys(group for trial in trials for group in trial.groups()):
                rows.append(await mark(task, group, shots, choice.select, trials, asker))
            differences += [compare(task, *pair, trials) for pair in task.pairs]
        except ValueError as error:
            problem = f"{task.name} at {shots} shots: {error}"
    return Result(task.name, rows, differences, problem)


def numbers_of_shots(task: Task, choice: Choice) -> Sequence[int]:
    if choice.shots is None or not task.takes_shots:
        return task.shots
    # none per class would be a made-up word that nobody has explained
    return [shots for shots in choice.shots if shots or not task.per_class]


async def run_trials(
    task: Task, source: Source, shots: int, choice: Choice, asker: Asker, begin: Begin
) -> list[Trial]:
    found = []
    num = task.num if choice.num is None else choice.num
    count = task.trials if choice.trials is None else choice.trials
    for number in range(count):
        plan = Plan(shots, choice.select, choice.seed + number, num, choice.pool)
        questions = await source.questions(plan, asker)
        name = f"{task.name} {shots} shots" + (f" {number + 1}/{count}" if count > 1 else "")
        advance = begin(name, len(questions))
        answers = await asker.ask_all(questions, task.max_tokens, task.num_beams, advance)
        pairs = list(zip(questions, answers, strict=True))
        found.append(
            Trial(
                [Asked(q, a) for q, a in pairs if not isinstance(a, Failure)],
                [(q, a) for q, a in pairs if isinstance(a, Failure)],
            )
        )
    return found


async def mark(
    task: Task, group: str, shots: int, select: str, trials: Sequence[Trial], asker: Asker
) -> Row:
    """The figures of one group. Raises ValueError where not one answer came, with the reason."""
    metric = task.metric
    failed: dict[str, int] = {}
    for question, failure in (pair for t in trials for pair in t.failures):
        if question.group == group:
            failed[failure.reason] = failed.get(failure.reason, 0) + 1
    by_trial = [[one for one in t.asked if one.question.group == group] for t in trials]
    by_trial = [asked for asked in by_trial if asked]
    if not by_trial:
        raise ValueError(f"{group or 'it'} got no answer: {next(iter(failed))}")
    values = [metric.values(asked) for asked in by_trial]
    totals = [metric.total(asked, some) for asked, some in zip(by_trial, values, strict=True)]
    asked, flat = [one for t in by_trial for one in t], [value for some in values for value in some]
    figures: dict[str, Any] = {}
    if task.has_baselines:
        figures = await baselines(task, asked, flat, asker)
    return Row(
        task.name,
        group,
        metric.name,
        metric.scale,
        shots,
        task.per_class,
        select if task.takes_shots and not task.per_class else "own",
        fmean(totals),
        stdev(totals) if len(totals) > 1 else None,
        metric.interval(asked, flat),
        tuple(totals),
        len(asked),
        failed,
        **figures,
    )


async def baselines(
    task: Task, asked: Sequence[Asked], values: Sequence[float], asker: Asker
) -> dict[str, Any]:
    """Fields of a row. A server without embeddings leaves the last two out, and a note."""
    known = {
        "chance": chance([one.question for one in asked]),
        "pixels": fmean(by_pixels(asked)),
    }
    try:
        features = await by_features(asked, asker)
    except ValueError as error:
        return {**known, "note": str(error)}
    mean, interval = paired(values, features)
    nearest = "nearest neighbour on the tower's features"
    less = Difference(task.name, nearest, mean, interval, len(features))
    return {**known, "features": fmean(features), "less_features": less}


def compare(task: Task, ours: str, theirs: str, trials: Sequence[Trial]) -> Difference:
    """Over the queries that were answered in both groups."""
    pairs = list[tuple[float, float]]()
    for trial in trials:
        found = {}
        for group in (ours, theirs):
            asked = [one for one in trial.asked if one.question.group == group]
            cases = [one.question.case for one in asked]
            found[group] = dict(zip(cases, task.metric.values(asked), strict=True))
        both = found[ours].keys() & found[theirs].keys()
        pairs += [(found[ours][case], found[theirs][case]) for case in sorted(both)]
    mean, interval = paired([a for a, _ in pairs], [b for _, b in pairs])
    return Difference(ours, theirs, mean, interval, len(pairs))
