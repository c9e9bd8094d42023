"""The error object a client gets, and what survives a process border."""

import pickle
import subprocess
import sys

import pytest

from flamingo_server import errors
from flamingo_server.errors import BadRequest, Draining, FlamingoError, QueueFull, TooLarge, naming


def leaves(base: type[FlamingoError] = FlamingoError) -> list[type[FlamingoError]]:
    children = [child for child in base.__subclasses__() if child.__module__ == errors.__name__]
    below = [leaf for child in children for leaf in leaves(child)]
    return below or [base]


def test_to_dict_is_the_contracts_error_object() -> None:
    error = TooLarge("Send less.", param="prompt[2].image", code="image_too_large")
    assert error.to_dict() == {
        "error": {
            "message": "Send less.",
            "type": "too_large_error",
            "param": "prompt[2].image",
            "code": "image_too_large",
        }
    }


def test_every_status_of_the_contract_has_one_class() -> None:
    statuses = [400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503]
    assert sorted(leaf.status for leaf in leaves()) == statuses
    assert len({leaf.type for leaf in leaves()}) == len(statuses)


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_the_drawing_on_top_shows_every_class(leaf: type[FlamingoError]) -> None:
    assert leaf.__name__ in (errors.__doc__ or "")


def test_only_unavailable_errors_say_when_to_come_back() -> None:
    assert QueueFull("Later.", retry_after=2.5).retry_after == 2.5
    assert Draining("Later.").retry_after == 1.0


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_an_error_survives_a_process_border(leaf: type[FlamingoError]) -> None:
    error = pickle.loads(pickle.dumps(leaf("Text.", param="p", code="c")))
    assert type(error) is leaf and error.to_dict() == leaf("Text.", param="p", code="c").to_dict()


def test_naming_gives_a_place_and_keeps_a_nearer_one() -> None:
    with pytest.raises(BadRequest) as outer, naming("prompt[1]"):
        raise BadRequest("Text.")
    with pytest.raises(BadRequest) as inner, naming("prompt[1]"):
        raise BadRequest("Text.", param="prompt[1].image")
    assert (outer.value.param, inner.value.param) == ("prompt[1]", "prompt[1].image")


def test_errors_need_the_standard_library_only() -> None:
    question = (
        "import sys; before = set(sys.modules); import flamingo_server.errors;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    assert answer.stdout.strip() == "['flamingo_server']"
