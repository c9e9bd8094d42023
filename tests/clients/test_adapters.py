from pathlib import Path

import pytest

from clients.fake_server import ADAPTER, Script, SyncWorld, answer, refusal
from flamingo_client import Adapter, AnswerError, BadRequestError, ForbiddenError

PETS = Adapter("pets", "4f0c", 12, 1, {"data": {}})


def asked(script: Script) -> tuple[str, str]:
    [request] = script.requests
    return request.method, request.url.raw_path.decode()


def test_the_loaded_adapters_are_listed(world: type[SyncWorld]) -> None:
    script = Script(answer(json={"adapters": [ADAPTER]}))
    assert world(script).call("adapters") == (PETS,)
    assert asked(script) == ("GET", "/v1/adapters")


@pytest.mark.parametrize("path", ["pets.safetensors", Path("pets.safetensors")])
def test_an_adapter_is_loaded_from_a_path_of_the_server(
    world: type[SyncWorld], path: str | Path
) -> None:
    script = Script(answer(201, ADAPTER))
    assert world(script).call("load_adapter", "pets", path) == PETS
    assert asked(script) == ("POST", "/v1/adapters")
    assert script.body == {"name": "pets", "path": "pets.safetensors"}


def test_unloading_says_how_many_still_run(world: type[SyncWorld]) -> None:
    script = Script(answer(json={"name": "pets", "requests": 2}))
    assert world(script).call("unload_adapter", "pets") == 2
    assert asked(script) == ("DELETE", "/v1/adapters/pets")


def test_a_name_is_one_piece_of_the_path(world: type[SyncWorld]) -> None:
    script = Script(answer(json={"name": "x", "requests": 0}))
    world(script).call("unload_adapter", "../a?b")
    assert asked(script) == ("DELETE", "/v1/adapters/..%2Fa%3Fb")


@pytest.mark.parametrize(("status", "kind"), [(409, BadRequestError), (403, ForbiddenError)])
def test_a_refusal_is_raised_and_not_retried(
    world: type[SyncWorld], status: int, kind: type[Exception]
) -> None:
    script = Script(refusal(status))
    with pytest.raises(kind):
        world(script).call("load_adapter", "pets", "a")
    assert len(script.requests) == 1


def test_an_answer_that_is_no_list_of_adapters_is_an_error(world: type[SyncWorld]) -> None:
    for body in ({"adapters": [3]}, {"adapters": "pets"}, {"adapters": [{"name": "a"}]}):
        with pytest.raises(AnswerError):
            world(Script(answer(json=body))).call("adapters")
