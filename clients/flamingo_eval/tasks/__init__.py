"""Every task by name, and groups of them."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_eval.tasks import captions, closed, emoji, films, questions, words
from flamingo_eval.tasks.base import Task

PUBLISHED = (*captions.TASKS, *questions.TASKS, *closed.TASKS, *films.TASKS)
EMOJI = (*words.TASKS, *emoji.TASKS)
TASKS = {task.name: task for task in (*PUBLISHED, *EMOJI)}
GROUPS = {"emoji": EMOJI, "published": PUBLISHED, "all": (*EMOJI, *PUBLISHED)}


def chosen(names: Sequence[str]) -> list[Task]:
    """Tasks and groups, each task once. Raises ValueError for an unknown name."""
    found: dict[str, Task] = {}
    for name in names:
        if name not in GROUPS and name not in TASKS:
            known = ", ".join([*GROUPS, *TASKS])
            raise ValueError(f"no task {name!r}; known are: {known}")
        found |= {task.name: task for task in GROUPS.get(name) or (TASKS[name],)}
    return list(found.values())
