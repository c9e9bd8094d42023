"""Questions → requests, in the words the loaded family was trained with, or in published ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from flamingo_client import Part, Shot, TemplateTask, example, text
from flamingo_eval.examples import Example, Question

END_OF_CHUNK = "<|endofchunk|>"
PAPER_SHOTS = ("This is a cat wearing sunglasses.", "Three elephants walking in the savanna.")
FAMILY = "family"
WORDINGS: dict[str, dict[str, tuple[str, str, str]]] = {
    # Alayrac et al. 2022, appendix on few-shot prompts
    "paper": {
        "caption": (" Output:", " ", ""),
        "vqa": (" Question: {question} Answer:", " ", ""),
        "classify": (" Output:", " ", ""),
        "hateful_memes": (
            ' is an image with written: "{text}" on it. Is it hateful? Answer:',
            " ",
            "",
        ),
    },
    # OpenFlamingo's evaluation code, with the line ends after its caption and VQA shots
    "openflamingo": {
        "caption": ("Output:", "", "\n"),
        "vqa": ("Question:{question} Short answer:", "", "\n"),
        "classify": ("Output:", "", ""),
        "hateful_memes": (
            "is an image with: '{text}' written on it. Is it hateful? Answer:",
            "",
            "",
        ),
    },
}
"""Of each task what stands before an answer, the blank between, and what follows the shot."""


def request(question: Question, wording: str) -> dict[str, Any]:
    """The fields of a request that say what is asked: `prompt`, or `task` with its examples.

    `family` lets the server word it as the loaded checkpoint was trained; templates always do.
    Raises KeyError for an unknown wording, OSError and ValueError for media that cannot be read.
    """
    if wording == FAMILY or question.form.is_template:
        return structured(question)
    return {"prompt": list(parts(question, wording))}


def structured(question: Question) -> dict[str, Any]:
    form, only = question.form, question.is_text_only
    task: str | TemplateTask = {"template": form.task} if form.is_template else form.task
    shots = [shot(one, form.answer, is_text_only=only) for one in question.shots]
    asked = {"task": task, "query": shot(question.query, None)}
    return asked | ({"examples": shots} if shots else {}) | ({"zero_shot": True} if only else {})


def shot(one: Example, answer: str | None, is_text_only: bool = False) -> Shot:
    fields = dict(one.fields) | ({} if answer is None else {answer: one.answer})
    return example(None if is_text_only else one.media.part(), **fields)


def parts(question: Question, wording: str) -> Iterator[Part]:
    before, blank, after = WORDINGS[wording][question.form.task]
    for one in question.shots:
        if not question.is_text_only:
            yield one.media.part()
        yield text(before.format(**one.fields) + blank + one.answer)
        yield text(END_OF_CHUNK, special_tokens=True)
        if after:
            yield text(after)
    yield question.query.media.part()
    yield text(before.format(**question.query.fields))


def candidates(question: Question, wording: str) -> list[str]:
    """As they stand behind the prompt: behind a task the server writes the blank itself."""
    if wording == FAMILY or question.form.is_template:
        return list(question.candidates)
    _, blank, _ = WORDINGS[wording][question.form.task]
    return [blank + candidate for candidate in question.candidates]


def trimmed(answer: str, task: str) -> str:
    """What counts of an open-ended answer: up to the words that begin another example (Alayrac et
    al. 2022; OpenFlamingo's evaluation code)."""
    if task == "caption":
        return answer.split("Output", 1)[0].replace('"', "").strip()
    if task == "vqa":
        return re.split("Question|Answer|Short", answer, maxsplit=1)[0].split(", ")[0].strip()
    return answer.strip()
