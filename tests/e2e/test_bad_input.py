"""Whatever a client sends gets a clear error, and the next request is answered."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from e2e.calls import ask, gif, image, png, png_that_claims, text, video
from films import film, sound

OK = [text("a")]
JSON = {"content-type": "application/json"}


def prompt(*parts: Any, **rules: Any) -> dict[str, Any]:
    return {"prompt": list(parts), **rules}


def source(**fields: Any) -> dict[str, Any]:
    return prompt({"type": "image", "image": fields})


PICTURE = {"image": {"data": base64.b64encode(png()).decode()}}
ASKED = {**PICTURE, "question": "Who?"}
VQA = {**ASKED, "answer": "me"}
TASK: dict[str, Any] = {"task": "vqa", "query": ASKED}
ZERO = {"zero_shot": True}


def examples(*shots: Any) -> dict[str, Any]:
    return {**TASK, "examples": list(shots)}


BODIES: list[tuple[str, int, str, Any]] = [
    # id, status, part of the message, body
    ("not_a_picture", 415, "not a picture", prompt(image(b"hello, this is no picture"))),
    ("empty_picture", 415, "not a picture", prompt(image(b""))),
    ("truncated_png", 400, "cut off", prompt(image(png(size=(64, 64))[:90]))),
    ("vast_png", 413, "3,600,000,000 pixels", prompt(image(png_that_claims(60_000, 60_000)))),
    ("gif_bomb", 413, "frames", prompt(image(gif(600)))),
    ("second_picture_bad", 415, "not a picture", prompt(image(png()), *OK, image(b"nope"))),
    ("no_prompt", 400, "prompt", {}),
    ("no_parts", 400, "empty", prompt()),
    ("empty_text", 400, "empty", prompt(text(""))),
    ("5000_tokens", 413, "5,000 tokens", prompt(text("a" * 5000))),
    ("a_million_characters", 413, "characters", prompt(text("a" * 1_000_000))),
    ("100_pictures", 413, "at most 64", prompt(*[image(png())] * 100)),
    ("max_tokens_past_context", 413, "255 of 256", prompt(*OK, max_tokens=256)),
    ("unknown_field", 400, "'colour'", prompt(*OK, colour="red")),
    ("unknown_field_image", 400, "'image'", prompt(*OK, image="x")),
    ("unknown_field_text", 400, "'text'", prompt(*OK, text="x")),
    ("unknown_field_in_a_part", 400, "'size'", prompt(text("a", size=3))),
    ("text_in_an_image_part", 400, "'text'", prompt({**image(png()), "text": "x"})),
    ("unknown_field_in_a_source", 400, "'path'", source(data="", path="x")),
    ("long_unknown_field", 400, "unknown field", prompt(*OK, **{"x" * 100_000: 1})),
    ("text_is_a_number", 400, "prompt[0].text", prompt({"type": "text", "text": 3})),
    ("max_tokens_is_a_string", 400, "max_tokens", prompt(*OK, max_tokens="3")),
    ("max_tokens_is_a_fraction", 400, "max_tokens", prompt(*OK, max_tokens=1.5)),
    ("stream_is_a_string", 400, "stream", prompt(*OK, stream="yes")),
    ("seed_is_true", 400, "seed", prompt(*OK, seed=True)),
    ("prompt_is_a_string", 400, "prompt", {"prompt": "a picture of"}),
    ("part_is_a_string", 400, "prompt[0]", prompt("a picture of")),
    ("stop_of_numbers", 400, "stop[0]", prompt(*OK, stop=[1])),
    ("empty_stop", 400, "stop", prompt(*OK, stop=[""])),
    ("unknown_part_type", 400, "audio", prompt({"type": "audio", "audio": {}})),
    ("part_without_type", 400, "prompt[0]", prompt({"text": "a"})),
    ("negative_temperature", 422, "temperature", prompt(*OK, temperature=-0.1)),
    ("top_p_0", 422, "top_p", prompt(*OK, top_p=0)),
    ("top_p_2", 422, "top_p", prompt(*OK, top_p=2)),
    ("min_p_2", 422, "min_p", prompt(*OK, min_p=2)),
    ("max_tokens_0", 422, "max_tokens", prompt(*OK, max_tokens=0)),
    ("min_over_max", 422, "min_tokens", prompt(*OK, min_tokens=3, max_tokens=2)),
    ("n_0", 422, "n:", prompt(*OK, n=0)),
    ("n_1000", 422, "at most 16", prompt(*OK, n=1000)),
    ("logprobs_21", 422, "logprobs", prompt(*OK, logprobs=21)),
    ("17_stops", 422, "stop", prompt(*OK, stop=["a"] * 17)),
    ("repetition_penalty_tiny", 422, "repetition", prompt(*OK, repetition_penalty=1e-300)),
    ("vast_deadline", 422, "deadline_ms", prompt(*OK, deadline_ms=10**400)),
    ("vast_seed", 422, "seed", prompt(*OK, seed=2**63)),
    ("unknown_model", 404, "'gpt'", prompt(*OK, model="gpt")),
    ("unknown_media_id", 404, "no picture", source(id="sha256:00")),
    ("adapter", 404, "'pets' is not loaded here; loaded are: none", prompt(*OK, adapter="pets")),
    ("adapter_number", 400, "adapter", prompt(*OK, adapter=3)),
    ("explain", 400, "explain is not served", prompt(*OK, explain=True)),
    ("support_set", 400, "support_set is not served", prompt(*OK, support_set={"name": "a"})),
    ("beams_0", 422, "num_beams", prompt(*OK, num_beams=0)),
    ("beams_17", 422, "num_beams may be at most 16", prompt(*OK, num_beams=17)),
    ("n_over_beams", 422, "at most num_beams, 2", prompt(*OK, num_beams=2, n=3)),
    ("hot_beams", 422, "set temperature to 0", prompt(*OK, num_beams=2, temperature=0.5)),
    ("vast_penalty", 422, "length_penalty", prompt(*OK, num_beams=2, length_penalty=1e9)),
    ("penalty_text", 400, "length_penalty", prompt(*OK, num_beams=2, length_penalty="1")),
    ("early_soon", 400, "early_stopping", prompt(*OK, num_beams=2, early_stopping="soon")),
    ("score_rule", 400, "score_rule", prompt(*OK, num_beams=2, score_rule="best")),
    ("penalty_alone", 422, "length_penalty is for beam", prompt(*OK, length_penalty=0.5)),
    ("early_alone", 422, "early_stopping is for beam", prompt(*OK, early_stopping="never")),
    ("rule_alone", 422, "score_rule is for beam", prompt(*OK, score_rule="total")),
    ("drafts_alone", 422, "stream_hypotheses is for", prompt(*OK, stream_hypotheses=True)),
    ("beam_prompt", 422, "without beams", prompt(*OK, num_beams=2, prompt_logprobs=1)),
    ("beams_past_context", 413, "255 of 256", prompt(*OK, num_beams=2, max_tokens=256)),
    ("prompt_logprobs_21", 422, "prompt_logprobs", prompt(*OK, prompt_logprobs=21)),
    ("salt_empty", 422, "cache_salt", prompt(*OK, cache_salt="")),
    ("salt_long", 422, "cache_salt", prompt(*OK, cache_salt="a" * 257)),
    ("salt_number", 400, "cache_salt", prompt(*OK, cache_salt=3)),
    ("unknown_null", 400, "'colour'", prompt(*OK, colour=None)),
    ("empty_film", 415, "not a film", prompt(video(b""))),
    ("sound_alone", 415, "only sound", prompt(video(sound()))),
    ("cut_film", 400, "cut off", prompt(video(film()[:-400]))),
    ("picture_in_a_video_part", 400, "'image'", prompt({**video(b""), "image": {}})),
    ("fps_0", 422, "prompt[0].fps", prompt(video(b"", fps=0))),
    ("fps_negative", 422, "prompt[0].fps", prompt(video(b"", fps=-1.0))),
    ("fps_vast", 422, "prompt[0].fps", prompt(video(b"", fps=1e9))),
    ("max_frames_0", 422, "prompt[0].max_frames", prompt(video(b"", max_frames=0))),
    ("max_frames_1e6", 413, "64 or less", prompt(video(b"", max_frames=10**6))),
    ("max_frames_1e400", 422, "max_frames", prompt(video(b"", max_frames=10**400))),
    ("many_films", 413, "320 frames together", prompt(*[video(b"", max_frames=64)] * 5)),
    ("unknown_film_id", 404, "no film", prompt({"type": "video", "video": {"id": "sha256:0"}})),
    ("prompt_and_task", 400, "not both", {**prompt(*OK), **TASK}),
    ("prompt_and_query", 400, "need a task", {**prompt(*OK), "query": TASK["query"]}),
    ("examples_without_a_task", 400, "need a task", {"examples": [TASK["query"]]}),
    ("task_without_a_query", 400, "needs a query", {"task": "vqa"}),
    ("unknown_task", 400, "task: Input should be 'caption'", {**TASK, "task": "rhyme"}),
    ("task_is_a_number", 400, "task", {**TASK, "task": 3}),
    ("task_without_a_template", 400, "task.template", {**TASK, "task": {}}),
    ("template_with_attributes", 400, "lone brace", {**TASK, "task": {"template": "{a.b}"}}),
    ("template_with_a_format", 400, "lone brace", {**TASK, "task": {"template": "{a:>9}"}}),
    ("template_of_the_media", 400, "cannot name", {**TASK, "task": {"template": "{image}"}}),
    ("long_template", 422, "task.template", {**TASK, "task": {"template": "a" * 10_001}}),
    ("missing_field", 400, "query needs the field 'question'", {**TASK, "query": PICTURE}),
    ("missing_in_example", 400, "examples[1] needs the field 'answer'", examples(VQA, ASKED)),
    ("unknown_field_of_a_task", 400, "no field 'colour'", examples({**VQA, "colour": "red"})),
    ("long_field_of_a_task", 400, "no field", examples({**VQA, "x" * 100_000: "red"})),
    ("field_is_a_number", 400, "examples[0].answer", examples({**VQA, "answer": 3})),
    ("query_with_its_answer", 400, "leaves out 'answer'", {**TASK, "query": VQA}),
    ("no_picture", 400, "exactly one of image and video", examples({"question": "a"})),
    ("two_media", 400, "exactly one", examples({**VQA, "video": {"data": ""}})),
    ("fps_of_a_picture", 400, "fps belongs to a video", examples({**VQA, "fps": 2.0})),
    ("turns_of_a_question", 400, "belong to the task dialogue", examples({**VQA, "turns": []})),
    ("dialogue_without_turns", 400, "needs turns", {**TASK, "task": "dialogue"}),
    ("no_turns", 400, "one turn", {"task": "dialogue", "query": {**PICTURE, "turns": []}}),
    ("bad_picture_in_example", 415, "not a picture", examples({**VQA, "image": {"data": ""}})),
    ("zero_shot_classes", 400, "for caption and vqa", {**TASK, "task": "classify", **ZERO}),
    ("zero_shot_pictures", 400, "words alone", {**examples(VQA), **ZERO}),
    ("zero_shot_nothing", 400, "without pictures", {**TASK, **ZERO}),
    ("70_examples", 413, "71 pictures", examples(*[VQA] * 70)),
    ("10_000_examples", 422, "examples", examples(*[ASKED] * 10_000)),
    ("vast_field", 413, "characters", examples({**VQA, "answer": "a" * 1_000_000})),
    ("long_fields", 413, "tokens", examples({**VQA, "answer": "a" * 1000})),
    ("https_url", 403, "off on this server", source(url="https://example.com/a.png")),
    ("file_url", 403, "never reads files", source(url="file:///etc/passwd")),
    ("path", 403, "never reads files", source(url="/etc/passwd")),
    ("ftp_url", 400, "ftp", source(url="ftp://example.com/a.png")),
    ("bad_base64", 400, "base64", source(data="!!!!")),
    ("url_and_data", 400, "exactly one", source(url="data:,a", data="aaaa")),
    ("no_source", 400, "exactly one", source()),
    ("image_token", 400, "<image>", prompt(text("<image>", special_tokens=True))),
]
NOT_SUPPORTED = {"explain", "support_set"}
DEEP = json.loads('{"items":' * 300 + "{}" + "}" * 300)
CONSTRAINTS: list[tuple[str, str, Any]] = [
    # id, part of the message, constraint
    ("none", "exactly one of choices, regex", {}),
    ("two", "exactly one of choices, regex", {"regex": "a", "choices": ["a"]}),
    ("null", "exactly one of choices, regex", {"regex": None}),
    ("open_regex", "unclosed group", {"regex": "(a"}),
    ("look_behind", "look-around", {"regex": "(?<=a)b"}),
    ("empty_language", "No text satisfies", {"regex": r"[^\s\S]"}),
    ("long_regex", "at most 4,096", {"regex": "a" * 5000}),
    ("no_choices", "at least one", {"choices": []}),
    ("empty_choice", "choices[1]", {"choices": ["a", ""]}),
    ("unknown_type", "rhyme", {"json_schema": {"type": "rhyme"}}),
    ("schema_elsewhere", "does not fetch", {"json_schema": {"$ref": "http://example.com/a"}}),
    ("schema_of_a_file", "does not fetch", {"json_schema": {"$ref": "file:///etc/passwd"}}),
    ("long_schema", "at most 16,384", {"json_schema": {"description": "a" * 20_000}}),
    ("deep_schema", "", {"json_schema": DEEP}),
]
MISSHAPEN: list[tuple[str, str, Any]] = [
    ("text", "constraint", "a+"),
    ("unknown", "'grammar'", {"grammar": "a"}),
    ("choice_number", "choices[0]", {"choices": [1]}),
    ("schema_list", "json_schema", {"json_schema": []}),
]
TEXTS = {"candidates": ["a", "b"]}
CLOSED: list[tuple[str, str, int, str, Any]] = [
    # id, route, status, part of the message, body
    ("missing", "classify", 400, "candidates", prompt(*OK)),
    ("none", "classify", 422, "candidates", prompt(*OK, candidates=[])),
    ("text", "classify", 400, "candidates", prompt(*OK, candidates="cat")),
    ("number", "classify", 400, "candidates[1]", prompt(*OK, candidates=["a", 1])),
    ("empty", "classify", 422, "candidates[1]", prompt(*OK, candidates=["a", ""])),
    ("10_001", "classify", 413, "the limit is 10,000", prompt(*OK, candidates=["a"] * 10_001)),
    (
        "long",
        "classify",
        413,
        "candidates[1] has 256 tokens",
        prompt(*OK, candidates=["a", "a" * 256]),
    ),
    ("vast", "classify", 413, "1,000,000 characters", prompt(*OK, candidates=["a" * 1_000_000])),
    (
        "many",
        "classify",
        413,
        "262,144 tokens together",
        prompt(*OK, candidates=["a" * 200] * 2000),
    ),
    ("normalize", "classify", 400, "normalize", prompt(*OK, **TEXTS, normalize="max")),
    ("ensemble_0", "classify", 422, "ensemble", {**examples(VQA), **TEXTS, "ensemble": 0}),
    ("ensemble_33", "classify", 422, "ensemble", {**examples(VQA), **TEXTS, "ensemble": 33}),
    ("ensemble_of_parts", "classify", 400, "give a task", prompt(*OK, **TEXTS, ensemble=2)),
    (
        "too_few_orders",
        "classify",
        422,
        "2 examples have 2 orders",
        {**examples(VQA, VQA), **TEXTS, "ensemble": 3},
    ),
    ("calibrated_words", "classify", 400, "needs a picture", prompt(*OK, **TEXTS, calibrate=True)),
    ("calibrate_text", "classify", 400, "calibrate", prompt(*OK, **TEXTS, calibrate="yes")),
    ("negative_seed", "classify", 422, "seed", prompt(*OK, **TEXTS, seed=-1)),
    ("max_tokens", "classify", 400, "'max_tokens'", prompt(*OK, **TEXTS, max_tokens=1)),
    ("later", "classify", 400, "explain is not served", prompt(*OK, **TEXTS, explain=True)),
    ("adapter", "classify", 404, "'a' is not loaded", prompt(*OK, **TEXTS, adapter="a")),
    ("model", "classify", 404, "'gpt'", prompt(*OK, **TEXTS, model="gpt")),
    ("no_prompt", "classify", 400, "prompt", TEXTS),
    ("long_prompt", "classify", 413, "5,000 tokens", prompt(text("a" * 5000), **TEXTS)),
    ("bad_picture", "classify", 415, "not a picture", prompt(image(b"no"), **TEXTS)),
    ("100_pictures", "classify", 413, "at most 64", prompt(*[image(b"")] * 100, **TEXTS)),
    ("salt", "classify", 422, "cache_salt", prompt(*OK, **TEXTS, cache_salt="")),
    ("deadline", "classify", 422, "deadline_ms", prompt(*OK, **TEXTS, deadline_ms=0)),
    (
        "past",
        "classify",
        408,
        "deadline_ms passed",
        prompt(*OK, candidates=["a" * 200] * 1300, deadline_ms=1),
    ),
    ("missing", "score", 400, "continuations", prompt(*OK)),
    ("none", "score", 422, "continuations", prompt(*OK, continuations=[])),
    ("empty", "score", 422, "continuations", prompt(*OK, continuations="")),
    ("long", "score", 413, "continuations[0] has 256 tokens", prompt(*OK, continuations="a" * 256)),
    ("10_001", "score", 413, "the limit is 10,000", prompt(*OK, continuations=["a"] * 10_001)),
    ("candidates", "score", 400, "'candidates'", prompt(*OK, continuations=["a"], **TEXTS)),
]
MORE = b'{"prompt":[{"type":"text","text":"a"}],%s}'
ODD = b'{"task":"vqa","query":{"image":{"data":""},%s}}'
RAW: list[tuple[str, int, str, bytes]] = [
    ("not_json", 400, "not JSON", b"prompt=hello"),
    ("cut_json", 400, "not JSON", b'{"prompt": ['),
    ("a_list", 400, "must be a JSON object", b"[1, 2]"),
    ("null", 400, "must be a JSON object", b"null"),
    ("nothing", 400, "must be a JSON object", b""),
    ("not_utf8", 400, "body", b'{"prompt": "\xff\xfe"}'),
    ("deep", 400, "body", b"[" * 100_000),
    ("surrogate_in_text", 400, "[0].text", b'{"prompt":[{"type":"text","text":"\\ud800"}]}'),
    ("surrogate_in_name", 400, "unicode", MORE % b'"\\ud800":1'),
    ("surrogate_in_a_field", 400, "query.question", ODD % b'"question":"\\ud800"'),
    ("surrogate_in_a_field_name", 400, "", ODD % b'"\\ud800":"a"'),
    ("nan_fps", 422, "query.fps", ODD % b'"fps":NaN'),
    ("surrogate_in_a_salt", 400, "cache_salt", MORE % b'"cache_salt":"\\ud800"'),
    ("surrogate_in_a_regex", 400, "regex", MORE % b'"constraint":{"regex":"\\ud800"}'),
    ("nan_penalty", 422, "length_penalty", MORE % b'"num_beams":2,"length_penalty":NaN'),
    ("nan", 422, "temperature", MORE % b'"temperature":NaN'),
    ("infinity", 422, "temperature", MORE % b'"temperature":Infinity'),
    ("infinite_number", 422, "temperature", MORE % b'"temperature":1e999'),
    ("nan_for_a_count", 400, "top_k", MORE % b'"top_k":NaN'),
    ("endless_number", 400, "body", b'{"prompt": ' + b"9" * 5000 + b"}"),
]


def check(response: httpx.Response, status: int, says: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(response.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert says in error["message"] and len(response.content) < 1000
    return error


@pytest.fixture(autouse=True)
def still_answers(client: httpx.Client) -> Iterator[None]:
    yield
    assert ask(client, text("still there?"), max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("name", "status", "says", "body"), BODIES, ids=[b[0] for b in BODIES])
def test_a_bad_body_says_what_is_wrong(
    client: httpx.Client, name: str, status: int, says: str, body: Any, stream: bool
) -> None:
    body = {"stream": stream, **body}
    error = check(client.post("/v1/generate", json=body), status, says)
    assert (error["code"] == "not_supported") == (name in NOT_SUPPORTED)


@pytest.mark.parametrize(("name", "status", "says", "body"), RAW, ids=[b[0] for b in RAW])
def test_a_body_that_is_no_request_says_so(
    client: httpx.Client, name: str, status: int, says: str, body: bytes
) -> None:
    check(client.post("/v1/generate", content=body, headers=JSON), status, says)


@pytest.mark.parametrize(("name", "says", "rule"), CONSTRAINTS, ids=[c[0] for c in CONSTRAINTS])
def test_a_bad_constraint_says_what_is_wrong(
    client: httpx.Client, name: str, says: str, rule: Any
) -> None:
    body = prompt(*OK, constraint=rule, max_tokens=4)
    error = check(client.post("/v1/generate", json=body), 400, says)
    assert (error["param"], error["code"]) == ("constraint", "bad_constraint")


@pytest.mark.parametrize(("name", "says", "rule"), MISSHAPEN, ids=[c[0] for c in MISSHAPEN])
def test_a_constraint_of_another_shape_says_so(
    client: httpx.Client, name: str, says: str, rule: Any
) -> None:
    check(client.post("/v1/generate", json=prompt(*OK, constraint=rule)), 400, says)


@pytest.mark.parametrize(
    ("name", "route", "status", "says", "body"), CLOSED, ids=[f"{c[1]}-{c[0]}" for c in CLOSED]
)
def test_a_bad_closed_ended_question_says_what_is_wrong(
    client: httpx.Client, name: str, route: str, status: int, says: str, body: Any
) -> None:
    check(client.post(f"/v1/{route}", json=body), status, says)


def test_more_work_than_the_budget_is_refused_and_less_is_done(serve: Any) -> None:
    with serve(max_work=100) as url, httpx.Client(base_url=url, trust_env=False) as client:
        body = prompt(image(b"no picture"), num_beams=3, n=2, max_tokens=17)
        said = "num_beams 3 x n 2 x max_tokens 17 is 102; the limit is 100"
        check(client.post("/v1/generate", json=body), 413, said)
        assert ask(client, *OK, num_beams=3, n=2, max_tokens=16)["choices"]


def test_an_ensemble_that_the_queue_never_holds_is_refused(serve: Any) -> None:
    with serve(max_queued=3) as url, httpx.Client(base_url=url, trust_env=False) as client:
        body = {**examples(VQA, VQA), **TEXTS, "ensemble": 2}
        response = client.post("/v1/classify", json={**body, "calibrate": True})
        check(response, 422, "asks 4 prompts")
        assert client.post("/v1/classify", json=body).status_code == 200


def test_a_body_that_is_not_declared_json_says_so(client: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = b'{"prompt": [{"type": "text", "text": "a"}]}'
    check(client.post("/v1/generate", content=body, headers=form), 400, "application/json")


def test_the_place_of_the_error_is_named(client: httpx.Client) -> None:
    body = prompt(*OK, image(png()), image(b"nope"))
    assert check(client.post("/v1/generate", json=body), 415, "")["param"] == "prompt[2].image"


def test_the_place_of_an_error_in_an_example_is_named(client: httpx.Client) -> None:
    body = examples(VQA, {**VQA, "image": {"data": ""}})
    error = check(client.post("/v1/generate", json=body), 415, "")
    assert error["param"] == "examples[1].image"
    error = check(client.post("/v1/generate", json=examples(VQA, PICTURE)), 400, "")
    assert error["param"] == "examples[1].question"


@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "chunked"])
def test_100_mb_are_refused_before_they_are_read(client: httpx.Client, is_declared: bool) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"prompt": [{"type": "image", "image": {"data": "'
        for _ in range(100):
            yield base64.b64encode(bytes(750_000))

    headers = {**JSON, **({"content-length": "100000049"} if is_declared else {})}
    response = client.post("/v1/generate", content=body(), headers=headers)
    assert check(response, 413, "the limit is 32 MiB")["code"] == "body_too_large"


def test_a_large_picture_inside_the_body_limit_is_refused_by_its_own(client: httpx.Client) -> None:
    body = source(data="A" * 30_000_000)
    check(client.post("/v1/generate", json=body), 413, "the limit is 20 MiB")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/generate", 405), ("POST", "/healthz", 405)],
)
def test_a_wrong_route_or_method_has_the_same_shape(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    check(client.request(method, path), status, "")


def test_a_deadline_that_has_passed_is_a_408(client: httpx.Client) -> None:
    body = prompt(image(png("green", (2000, 2000))), text("a"), deadline_ms=1)
    check(client.post("/v1/generate", json=body), 408, "deadline")
