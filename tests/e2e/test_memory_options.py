"""Types and quantisation through the whole server: over HTTP, with the shipped checkpoint."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice

import pytest
from pydantic import ValidationError

from exam import is_right, questions
from flamingo_client import FlamingoClient
from flamingo_server.config import Settings

Serve = Callable[..., AbstractContextManager[str]]
OPTIONS = [
    {"dtype": "bfloat16"},
    pytest.param({"dtype": "float16"}, marks=pytest.mark.slow),  # no CPU computes in it
    {"quantize": "int8"},
    pytest.param({"quantize": "nf4"}, marks=pytest.mark.slow),
    {"quantize": "nf4", "dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_still_answers(serve: Serve, options: dict[str, str]) -> None:
    if "quantize" in options:
        pytest.importorskip("bitsandbytes")
    asked = list(islice(questions(), 0, None, 25))
    with serve("embedded", **options) as url, FlamingoClient(base_url=url, timeout=60) as client:
        answers = [client.generate(q.parts, max_tokens=16).choices[0].text for q in asked]
    right = sum(is_right(a, q.answer) for a, q in zip(answers, asked, strict=True))
    assert right >= 0.85 * len(asked) and len(asked) == 24


@pytest.mark.parametrize("option", [{"dtype": "float8"}, {"quantize": "int3"}])
def test_other_names_are_refused(option: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        Settings(**option)  # type: ignore[arg-type]
