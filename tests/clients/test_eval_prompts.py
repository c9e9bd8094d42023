"""How examples are worded, as published and as the server's families do, and where answers end."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from clients.eval_files import shown
from flamingo_eval.examples import CLASSIFY, MEMES, VQA, Data, Example, Media
from flamingo_eval.prompts import candidates, request, trimmed
from flamingo_eval.tasks.base import FewShot

MEDIA = Media("a", lambda: picture_bytes())
SHOT = Example(MEDIA, "two", ("two",), {"question": "How many?"})
QUERY = Example(MEDIA, "one", ("one",), {"question": "What?"})


def picture_bytes() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("wording", "text"),
    [
        (
            "paper",
            "<image> Question: How many? Answer: two<|endofchunk|><image> Question: What? Answer:",
        ),
        (
            "openflamingo",
            "<image>Question:How many? Short answer:two<|endofchunk|>\n"
            "<image>Question:What? Short answer:",
        ),
    ],
)
def test_published_wordings_are_written_out(wording: str, text: str) -> None:
    question = FewShot(Data([], []), VQA).question(QUERY, (SHOT,))
    parts = request(question, wording)["prompt"]
    assert shown(parts) == text
    special = [part["text"] for part in parts if part.get("special_tokens")]
    assert special == ["<|endofchunk|>"]


def test_published_wordings_write_candidates_and_braces_as_they_are() -> None:
    meme = Example(MEDIA, "yes", ("yes",), {"text": "its {fun}"})
    question = FewShot(Data([], [], ("no", "yes")), MEMES).question(meme, (meme,))
    assert candidates(question, "paper") == [" no", " yes"]
    assert candidates(question, "openflamingo") == candidates(question, "family") == ["no", "yes"]
    assert 'written: "its {fun}" on it' in shown(request(question, "paper")["prompt"])
    named = FewShot(Data([], [], ("a",)), CLASSIFY).question(meme, ())
    assert shown(request(named, "paper")["prompt"]) == "<image> Output:"


def test_the_wordings_are_the_servers_own() -> None:
    """What the server would write for a family of that wording, task by task."""
    from flamingo_eval.prompts import WORDINGS
    from flamingo_model.templates import FAMILIES

    for wording, tasks in WORDINGS.items():
        for task, (before, blank, after) in tasks.items():
            theirs = FAMILIES[wording][task].example
            field = {"caption": "caption", "vqa": "answer"}.get(task, "label")
            ours = f"<image>{before}{blank}{{{field}}}<|endofchunk|>{after}"
            assert theirs == ours


@pytest.mark.parametrize(
    ("task", "answer", "counts"),
    [
        ("caption", ' a "red" bus Output: a cat', "a red bus"),
        ("vqa", " two Question: what", "two"),
        ("vqa", "yes, it is", "yes"),
        ("vqa", "a cat Short answer: no", "a cat"),
        ("{question} {answer}", " dax ", "dax"),
    ],
)
def test_an_answer_ends_where_another_example_would_begin(
    task: str, answer: str, counts: str
) -> None:
    assert trimmed(answer, task) == counts
