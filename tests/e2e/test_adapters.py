"""Adapters over HTTP: at start, loaded while others decode, named by requests, unloaded again."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from adapters import FLAMINGO, adapter, low_rank, replacements, write
from e2e.calls import ask, ask_streamed, assert_same, image, joined, metric, png, text
from e2e.conftest import Serve
from flamingo_model.adapters import FORMAT, fuse
from flamingo_model.checkpoints.native import save_native
from flamingo_server.cli import main
from tiny import tiny_model, tiny_tokenizer

MODEL = tiny_model()
QUESTION = [image(png("red")), text("what"), image(png("blue")), text("is it?")]
SMALL = {"cache_bytes": 2**22}
RULES = {"max_tokens": 12, "min_tokens": 12, "logprobs": 0}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    changed = replacements(MODEL, seed, *FLAMINGO)
    return changed if seed == 1 else changed | low_rank(MODEL, seed)


@dataclass(frozen=True)
class House:
    """A folder with adapters "1" and "2" and wrong ones, and a server that may load from it."""

    folder: Path
    url: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        write(folder / f"{seed}", MODEL, tensors(seed))
    (folder / "inside").mkdir()
    write(folder / "inside" / "3", MODEL, tensors(3))
    write(folder / "wrong-base", tiny_model(seed=5), tensors(1))
    (folder / "cut").write_bytes((folder / "1").read_bytes()[:-5])
    (folder / "text").write_text("hello")
    nan = {"cross_attention.0.attention_gate": torch.tensor(torch.nan)}
    save_file(nan, folder / "nan", {"format": FORMAT, "card": '{"base_digest": "0"}'})
    os.mkfifo(folder / "pipe")
    secret = write(tmp_path_factory.mktemp("elsewhere") / "secret", MODEL, tensors(1))
    (folder / "link").symlink_to(secret)
    (folder / "round").symlink_to(folder / "round")
    return folder


@pytest.fixture(scope="module")
def house(serve: Serve, folder: Path) -> Iterator[House]:
    given = {"adapter": (f"red={folder}/1",), "adapter_folder": (str(folder),)}
    with serve(**given, **SMALL, max_adapters=3) as url:
        yield House(folder, url)


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    """And afterwards only the first adapter is there, and nothing runs."""
    with house.client() as client:
        yield client
        for found in client.get("/v1/adapters").json()["adapters"]:
            if found["name"] != "red":
                client.delete(f"/v1/adapters/{found['name']}")
        assert metric(client, "flamingo_running") == metric(client, "flamingo_blocks_used") == 0


@pytest.fixture(scope="module")
def fused(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server answers whose model has adapter "2" baked in."""
    model, where = tiny_model(), tmp_path_factory.mktemp("fused")
    fuse(model, adapter(MODEL, tensors(2)))
    save_native(model, tiny_tokenizer(), where, torch.float32)
    with (
        serve(where, **SMALL) as url,
        httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
    ):
        return answers(client)


def answers(client: httpx.Client, **named: Any) -> dict[str, Any]:
    words = ["cat", "dog", "car"]
    scored = {"prompt": QUESTION, **named}
    return {
        "greedy": ask(client, *QUESTION, **RULES, **named)["choices"],
        "sampled": ask(client, *QUESTION, **RULES, temperature=1.0, seed=5, **named)["choices"],
        "beams": ask(client, *QUESTION, **RULES, num_beams=3, **named)["choices"],
        "streamed": joined(ask_streamed(client, *QUESTION, **RULES, **named)),
        "classify": client.post("/v1/classify", json={**scored, "candidates": words}).json(),
        "score": client.post("/v1/score", json={**scored, "continuations": words}).json(),
    }


def load(client: httpx.Client, name: str, path: str) -> httpx.Response:
    return client.post("/v1/adapters", json={"name": name, "path": path})


def names(client: httpx.Client) -> list[str]:
    return [a["name"] for a in client.get("/v1/adapters").json()["adapters"]]


def probabilities(answer: dict[str, Any]) -> list[float]:
    return [candidate["probability"] for candidate in answer["candidates"]]


def assert_close(found: Any, expected: Any) -> None:
    """All numbers alike, all else equal; ids and times aside."""
    if isinstance(expected, dict):
        for key in expected.keys() - {"id", "usage", "timings"}:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=5e-4)
    else:
        assert found == expected


# ---- answers


def test_adapters_and_the_base_answer_together_as_alone_and_as_a_fused_server(
    client: httpx.Client, fused: dict[str, Any]
) -> None:
    assert load(client, "two", "2").status_code == 201
    expected = {"two": fused, "red": answers(client, adapter="red"), None: answers(client)}
    found: dict[str | None, Any] = {}

    def ask_all(name: str | None) -> None:
        with httpx.Client(base_url=client.base_url, timeout=240, trust_env=False) as own:
            found[name] = answers(own, adapter=name, cache_salt="together")

    threads = [threading.Thread(target=ask_all, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, answer in expected.items():
        assert_close(found[name], answer)
    ranks = {tuple(probabilities(answer["classify"])) for answer in expected.values()}
    assert len(ranks) == 3


def test_an_adapter_answers_the_same_after_it_was_loaded_again(client: httpx.Client) -> None:
    load(client, "two", "2")
    first = ask(client, *QUESTION, **RULES, adapter="two")
    assert client.delete("/v1/adapters/two").json() == {"name": "two", "requests": 0}
    load(client, "two", "inside/3")
    other = ask(client, *QUESTION, **RULES, adapter="two")
    client.delete("/v1/adapters/two")
    load(client, "two", "2")
    again = ask(client, *QUESTION, **RULES, adapter="two")
    assert other["choices"] != first["choices"] and other["usage"]["cached_prompt_tokens"] == 0
    assert again["usage"]["cached_prompt_tokens"] == 0
    assert_same(again["choices"], first["choices"])


def test_rendering_and_an_ensemble_take_an_adapter(client: httpx.Client) -> None:
    shot = {"image": QUESTION[0]["image"], "label": "cat"}
    body = {
        "task": "classify",
        "examples": [shot, {**shot, "label": "dog"}],
        "query": {"image": QUESTION[2]["image"]},
        "adapter": "red",
    }
    assert client.post("/v1/render", json=body).status_code == 200
    assert client.post("/v1/render", json={**body, "adapter": "blue"}).status_code == 404
    asked = {**body, "candidates": ["cat", "dog"], "ensemble": 2, "calibrate": True}
    found = client.post("/v1/classify", json=asked).json()
    plain = client.post("/v1/classify", json={**asked, "adapter": None}).json()
    assert probabilities(found) != probabilities(plain)


def test_the_command_line_names_an_adapter(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for flags in ([], ["--adapter=red"]):
        main(["generate", "--text=hello", "--max-tokens=6", f"--url={client.base_url}", *flags])
        said.append(capsys.readouterr().out)
    expected = ask(client, text("hello"), max_tokens=6, adapter="red")["choices"][0]["text"]
    assert said[1] == expected + "\n" != said[0]


# ---- the list


def test_the_list_says_what_each_adapter_is(client: httpx.Client) -> None:
    made = load(client, "two", "2")
    assert made.status_code == 201
    found = client.get("/v1/adapters").json()["adapters"]
    assert [a["name"] for a in found] == ["red", "two"] and found[1] == made.json()
    assert found[0]["parameters"] == sum(t.numel() for t in tensors(1).values())
    assert found[0]["requests"] == 0 and len(found[0]["digest"]) == 64
    assert found[0]["card"]["name"] == "pets" and found[0]["card"]["lora_alpha"] == 4.0
    assert found[0]["card"]["base_digest"] == found[1]["card"]["base_digest"]
    assert metric(client, "flamingo_adapters") == 2


def test_requests_are_counted_by_adapter(client: httpx.Client) -> None:
    before = metric(client, "flamingo_adapter_requests_total")
    ask(client, text("a"), max_tokens=1, adapter="red")
    ask(client, text("a"), max_tokens=1)
    assert metric(client, "flamingo_adapter_requests_total") == before + 1


# ---- coming and going while others decode


def test_loading_and_unloading_disturb_nobody_who_decodes(client: httpx.Client) -> None:
    long = {"max_tokens": 120, "min_tokens": 120}
    expected = ask(client, *QUESTION, **long)["choices"][0]
    load(client, "two", "2")
    with_two = ask(client, *QUESTION, **long, adapter="two")["choices"][0]
    found: dict[str, Any] = {}

    def run(key: str, **named: Any) -> None:
        with httpx.Client(base_url=client.base_url, timeout=240, trust_env=False) as own:
            found[key] = ask(own, *QUESTION, **long, **named)["choices"][0]

    threads = [
        threading.Thread(target=run, args=("base",)),
        threading.Thread(target=run, args=("two",), kwargs={"adapter": "two"}),
    ]
    for thread in threads:
        thread.start()
    while not requests_of(client, "two"):
        time.sleep(0.005)
    assert client.delete("/v1/adapters/two").json()["requests"] == 1
    late = client.post("/v1/generate", json={"prompt": QUESTION, "adapter": "two"})
    assert late.status_code == 404
    assert load(client, "two", "inside/3").status_code == 201
    for thread in threads:
        thread.join()
    assert found["base"]["token_ids"] == expected["token_ids"]
    assert found["two"]["token_ids"] == with_two["token_ids"]
    assert requests_of(client, "two") == 0


def requests_of(client: httpx.Client, name: str) -> int:
    found = client.get("/v1/adapters").json()["adapters"]
    [count] = [adapter["requests"] for adapter in found if adapter["name"] == name]
    return int(count)


def test_the_engine_steps_while_an_adapter_is_loaded(client: httpx.Client) -> None:
    with client.stream(
        "POST",
        "/v1/generate",
        json={"prompt": [text("a")], "max_tokens": 250, "min_tokens": 250, "stream": True},
    ) as response:
        lines = response.iter_lines()
        next(lines)
        with httpx.Client(base_url=client.base_url, timeout=120, trust_env=False) as other:
            before = metric(other, "flamingo_steps")
            assert load(other, "two", "2").status_code == 201
            assert metric(other, "flamingo_steps") > before
        assert any("event: end" in line for line in lines)


# ---- refusals


REFUSED = [
    # path, status, code, part of the message
    ("none", 404, "unknown_file", "no file 'none'"),
    ("inside", 404, "unknown_file", "no file"),
    ("pipe", 404, "unknown_file", "no file"),
    ("wrong-base", 400, "bad_adapter", "made for another base model"),
    ("cut", 400, "bad_adapter", "not a whole adapter"),
    ("text", 400, "bad_adapter", "not a whole adapter"),
    ("nan", 400, "bad_adapter", "NaN"),
    ("link", 403, "path_not_allowed", "--adapter-folder"),
    ("..", 403, "path_not_allowed", "--adapter-folder"),
    ("../elsewhere0/secret", 403, "path_not_allowed", "--adapter-folder"),
    ("/etc/passwd", 403, "path_not_allowed", "--adapter-folder"),
    ("/", 403, "path_not_allowed", "--adapter-folder"),
    ("round", 400, "bad_path", "no path"),
    ("a\0b", 400, "bad_path", "no path"),
    ("a" * 4000, 400, "bad_path", "no path"),
]


@pytest.mark.parametrize(("path", "status", "code", "says"), REFUSED, ids=range(len(REFUSED)))
def test_a_path_that_is_no_adapter_here_says_so(
    client: httpx.Client, folder: Path, path: str, status: int, code: str, says: str
) -> None:
    response = load(client, "new", path)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, "path")
    assert says in error["message"] and "\n" not in error["message"]
    assert str(folder) not in error["message"] and names(client) == ["red"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"name": "red", "path": "2"}, 409, "name"),
        ({"name": "", "path": "2"}, 400, "name"),
        ({"name": "a/b", "path": "2"}, 400, "name"),
        ({"name": "..", "path": "2"}, 400, "name"),
        ({"name": "a\n", "path": "2"}, 400, "name"),
        ({"name": "a" * 65, "path": "2"}, 400, "name"),
        ({"name": 3, "path": "2"}, 400, "name"),
        ({"name": "a"}, 400, "path"),
        ({"name": "a", "path": ""}, 422, "path"),
        ({"name": "a", "path": "\ud800"}, 400, "path"),
        ({"name": "a", "path": "2", "fuse": True}, 400, "fuse"),
        ([], 400, None),
    ],
    ids=str,
)
def test_a_malformed_body_says_what_is_wrong(
    client: httpx.Client, body: Any, status: int, param: str | None
) -> None:
    response = client.post("/v1/adapters", content=json.dumps(body), headers=JSON)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


JSON = {"content-type": "application/json"}


def test_an_absolute_path_within_the_folder_will_do(client: httpx.Client, folder: Path) -> None:
    assert load(client, "two", str(folder / "inside" / ".." / "2")).status_code == 201


def test_an_unknown_name_is_told_the_known_ones(client: httpx.Client) -> None:
    for route in ("generate", "classify", "score", "render"):
        extra = {"classify": {"candidates": ["a"]}, "score": {"continuations": ["a"]}}
        body = {"prompt": [text("a")], "adapter": "blue", **extra.get(route, {})}
        response = client.post(f"/v1/{route}", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (404, "adapter")
        assert error["message"].endswith("loaded are: red")
    response = client.delete("/v1/adapters/blue")
    assert response.status_code == 404 and names(client) == ["red"]


def test_no_more_adapters_than_the_limit(client: httpx.Client) -> None:
    for name in ("two", "three"):
        assert load(client, name, "2").status_code == 201
    response = load(client, "four", "2")
    assert response.status_code == 409 and "unload one" in response.json()["error"]["message"]
    client.delete("/v1/adapters/two")
    assert load(client, "four", "2").status_code == 201


def test_two_loads_of_one_name_at_once_make_one_adapter(client: httpx.Client) -> None:
    statuses = list[int]()

    def run() -> None:
        with httpx.Client(base_url=client.base_url, timeout=120, trust_env=False) as own:
            statuses.append(load(own, "two", "2").status_code)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 409, 409, 409] and names(client) == ["red", "two"]


def test_without_a_folder_clients_change_nothing(serve: Serve, folder: Path) -> None:
    with serve(adapter=(f"red={folder}/1",), **SMALL) as url:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            for response in (load(client, "two", f"{folder}/2"), client.delete("/v1/adapters/red")):
                assert response.status_code == 403
                assert "--adapter-folder" in response.json()["error"]["message"]
            assert names(client) == ["red"]


# ---- other ways to serve


@pytest.mark.parametrize(
    "settings", [{"kernels": "int8", "deterministic": True}, {"dtype": "bfloat16"}], ids=str
)
def test_a_base_in_another_form_knows_its_adapters(
    serve: Serve, folder: Path, settings: dict[str, Any]
) -> None:
    given = (f"red={folder}/1", f"two={folder}/2")
    with serve(adapter=given, **SMALL, **settings) as url:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            found = [ask(client, *QUESTION, **RULES, adapter=a) for a in ("red", "two", None)]
    assert len({str(answer["choices"][0]["logprobs"]) for answer in found}) == 3
