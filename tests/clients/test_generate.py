import json

import httpx
import pytest

from clients.fake_server import (
    CHOICE,
    GENERATION,
    TIMINGS,
    USAGE,
    AsyncWorld,
    Script,
    SyncWorld,
    answer,
)
from flamingo_client import (
    Choice,
    GenerateOptions,
    Generation,
    ImagePart,
    Timings,
    Usage,
    example,
    text,
)

EVERY_OPTION: GenerateOptions = {
    "task": {"template": "{a}"},
    "query": {"image": {"id": "x"}},
    "examples": [{"image": {"id": "y"}, "a": "b"}],
    "zero_shot": False,
    "model": "tiny",
    "adapter": "pets",
    "max_tokens": 8,
    "min_tokens": 1,
    "temperature": 0.0,
    "top_p": 0.9,
    "top_k": 0,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "seed": 0,
    "stop": ["."],
    "n": 2,
    "logprobs": 1,
    "prompt_logprobs": 0,
    "num_beams": 4,
    "length_penalty": -1.0,
    "early_stopping": "never",
    "score_rule": "total",
    "stream_hypotheses": True,
    "constraint": {"choices": ["cat", "dog"]},
    "priority": 1,
    "deadline_ms": 5000,
    "cache_salt": "me",
}


def test_an_answer_is_parsed_whole(world: type[SyncWorld]) -> None:
    choice = Choice(0, "a cat", (7, 8), "stop", logprobs=None, score=-0.5)
    usage = Usage(9, 2, cached_prompt_tokens=4, media=1, cached_media=0)
    whole = Generation("gen-1", "tiny", (choice,), usage, Timings(1.0, 2.5, 3.0, 4.0, 6.5))
    assert world(Script(answer())).call("generate", "hi") == whole


def test_fields_of_a_newer_server_are_ignored(world: type[SyncWorld]) -> None:
    newer = GENERATION | {
        "new": 1,
        "choices": [CHOICE | {"new": {}}],
        "usage": USAGE | {"new": 2},
        "timings": TIMINGS | {"new": 3},
    }
    today = world(Script(answer())).call("generate", "hi")
    assert world(Script(answer(json=newer))).call("generate", "hi") == today


def test_fields_of_the_contract_that_may_be_absent_have_defaults(world: type[SyncWorld]) -> None:
    bare = {"id": "i", "model": "m", "timings": {"ttft_ms": None}, "choices": []}
    answered = world(Script(answer(json=bare))).call("generate", "hi")
    assert answered == Generation("i", "m", (), Usage(), Timings())


def test_logprobs_come_as_the_server_sent_them(world: type[SyncWorld]) -> None:
    logprobs = [{"token": "a", "logprob": -0.1, "top": []}]
    sent = GENERATION | {"choices": [CHOICE | {"logprobs": logprobs}]}
    answered = world(Script(answer(json=sent))).call("generate", "hi")
    assert answered.choices[0].logprobs == logprobs


def test_logprobs_of_the_prompt_come_as_the_server_sent_them(world: type[SyncWorld]) -> None:
    logprobs = [None, {"token": "a", "logprob": -0.1, "top": []}]
    answered = world(Script(answer(json=GENERATION | {"prompt_logprobs": logprobs})))
    assert answered.call("generate", "hi").prompt_logprobs == logprobs


def test_a_string_is_sent_as_one_text_part(world: type[SyncWorld]) -> None:
    script = Script(answer())
    world(script).call("generate", "Output:<image>é")
    assert script.body == {"prompt": [{"type": "text", "text": "Output:<image>é"}]}
    assert script.requests[0].url.path == "/v1/generate"


def test_every_option_is_sent_by_its_name(world: type[SyncWorld]) -> None:
    script = Script(answer())
    world(script).call("generate", [text("hi")], **EVERY_OPTION)
    assert script.body == {"prompt": [text("hi")], **EVERY_OPTION}
    assert EVERY_OPTION.keys() == GenerateOptions.__annotations__.keys()


def test_none_is_not_sent_but_zero_and_false_are(world: type[SyncWorld]) -> None:
    script = Script(answer())
    world(script).call("generate", "hi", seed=None, top_k=0, early_stopping=False)
    assert script.body.keys() == {"prompt", "top_k", "early_stopping"}


def test_a_task_is_sent_without_a_prompt(world: type[SyncWorld]) -> None:
    script = Script(answer())
    picture: ImagePart = {"type": "image", "image": {"id": "x"}}
    query = example(picture, question="Who?")
    world(script).call("generate", task="vqa", query=query)
    assert script.body == {
        "task": "vqa",
        "query": {"image": {"id": "x"}, "question": "Who?"},
    }


def test_a_stop_string_is_sent_as_a_list(world: type[SyncWorld]) -> None:
    script = Script(answer())
    world(script).call("generate", "hi", stop="###")
    assert script.body["stop"] == ["###"]


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_an_unknown_option_is_refused_before_anything_is_sent(
    world: type[SyncWorld], method: str
) -> None:
    script = Script()
    with pytest.raises(TypeError, match="unknown option: max_token"):
        world(script).call(method, "hi", max_token=5)
    assert script.requests == []


@pytest.mark.parametrize("path", ["health", "ready"])
def test_a_probe_is_true_when_the_server_says_so(world: type[SyncWorld], path: str) -> None:
    script = Script(answer(json={"status": "ok"}))
    assert world(script).call(path) is True
    assert script.requests[0].url.path == {"health": "/healthz", "ready": "/readyz"}[path]


@pytest.mark.parametrize("status", [503, None])
def test_a_probe_is_false_at_once_when_the_server_is_not_there(
    world: type[SyncWorld], status: int | None
) -> None:
    driven = world(Script(answer(status) if status else httpx.ConnectError("refused")))
    assert driven.call("ready") is False
    assert driven.slept == []


def test_the_version_is_what_the_server_says(world: type[SyncWorld]) -> None:
    script = Script(answer(json={"version": "0.1.0"}))
    assert world(script).call("version") == {"version": "0.1.0"}
    assert script.requests[0].url.path == "/version"


def test_sync_and_async_send_the_same_bytes() -> None:
    scripts = Script(answer()), Script(answer())
    for world, script in zip((SyncWorld, AsyncWorld), scripts, strict=True):
        world(script, api_key="k").call("generate", "hi", **EVERY_OPTION)
    sync, async_ = (script.requests[0] for script in scripts)
    assert (sync.content, sync.headers) == (async_.content, async_.headers)
    assert json.loads(sync.content)["seed"] == 0
