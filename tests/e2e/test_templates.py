"""The structured form and `/v1/render` over HTTP: what is asked in examples is read as parts."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2e.calls import ask, image, metric, png, text

RED, BLUE = image(png("red")), image(png("blue"))
END = text("<|endofchunk|>", special_tokens=True)
VQA = {
    "task": "vqa",
    "examples": [{"image": RED["image"], "question": "How many?", "answer": "two"}],
    "query": {"image": BLUE["image"], "question": "Any <image>?"},
}
PARTS = [
    RED,
    text(" Question: How many? Answer: two"),
    END,
    BLUE,
    text(" Question: Any <image>? Answer:"),
]


def render(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/render", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_examples_are_the_parts_they_stand_for(client: httpx.Client) -> None:
    structured, by_hand = render(client, **VQA), render(client, prompt=PARTS)
    assert structured["token_ids"] == by_hand["token_ids"]
    assert structured["tokens"] == by_hand["tokens"]
    answer = client.post("/v1/generate", json={**VQA, "max_tokens": 8, "seed": 1}).json()
    same = ask(client, *PARTS, max_tokens=8, seed=1)
    assert answer["choices"] == same["choices"]
    assert answer["usage"]["prompt_tokens"] == same["usage"]["prompt_tokens"]
    assert answer["usage"]["media"] == 2


def test_rendered_parts_can_be_sent_again(client: httpx.Client) -> None:
    parts = render(client, **VQA)["parts"]
    assert [part["type"] for part in parts] == ["image", "text", "text", "image", "text"]
    assert [part["place"] for part in parts if part["type"] == "image"] == [
        "examples[0].image",
        "query.image",
    ]
    pictures = iter([RED, BLUE])
    again = [
        text(part["text"], special_tokens=part["special_tokens"])
        if part["type"] == "text"
        else next(pictures)
        for part in parts
    ]
    assert render(client, prompt=again)["token_ids"] == render(client, **VQA)["token_ids"]


def test_a_rendered_token_says_what_it_spells_and_which_picture_it_sees(
    client: httpx.Client,
) -> None:
    prompt = [text("a"), RED, text("b"), END, BLUE, text("c")]
    answer = render(client, prompt=prompt)
    spelled = [(token["token"], token["media"]) for token in answer["tokens"]]
    assert spelled == [
        ("a", None),
        ("<image>", 0),
        ("b", 0),
        ("<|endofchunk|>", 0),
        ("<image>", 1),
        ("c", 1),
    ]
    assert [token["token_id"] for token in answer["tokens"]] == answer["token_ids"]
    assert answer["parts"][0]["place"] == "prompt[0].text"


def test_rendering_looks_at_no_picture(client: httpx.Client) -> None:
    before = metric(client, "flamingo_completion_tokens_total")
    broken = {"image": {"data": "!"}, "question": "Who?"}
    film = {"video": {"id": "sha256:00"}, "question": "Who?", "answer": "me"}
    answer = render(client, task="vqa", examples=[film], query=broken)
    assert [part["type"] for part in answer["parts"] if part["place"]] == ["video", "image"]
    assert metric(client, "flamingo_completion_tokens_total") == before


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({**VQA, "max_tokens": 3}, 400, "max_tokens"),
        ({**VQA, "model": "gpt"}, 404, "model"),
        ({**VQA, "query": {"image": {}}}, 400, "query.question"),
        ({"prompt": [text("a" * 300)]}, 413, "prompt"),
    ],
)
def test_what_cannot_be_rendered_is_refused_as_in_generate(
    client: httpx.Client, body: Any, status: int, param: str
) -> None:
    response = client.post("/v1/render", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_a_template_of_ones_own(client: httpx.Client) -> None:
    task = {"template": "It's <image>a {{{thing}}}: {word}."}
    shot = {"image": RED["image"], "thing": "cat", "word": "dax"}
    answer = render(client, task=task, examples=[shot], query={**BLUE_THING, "thing": "dog"})
    by_hand = [
        text("It's "),
        RED,
        text("a {cat}: dax."),
        END,
        text("It's "),
        BLUE,
        text("a {dog}:"),
    ]
    assert answer["token_ids"] == render(client, prompt=by_hand)["token_ids"]


BLUE_THING = {"image": BLUE["image"]}


def test_a_dialogue_has_turns(client: httpx.Client) -> None:
    turns = [{"question": "Who?", "answer": "me"}, {"question": "Why?"}]
    answer = render(client, task="dialogue", query={**BLUE_THING, "turns": turns})
    by_hand = [BLUE, text(" Question: Who? Answer: me Question: Why? Answer:")]
    assert answer["token_ids"] == render(client, prompt=by_hand)["token_ids"]


def test_zero_shot_captions_open_with_the_papers_two(client: httpx.Client) -> None:
    answer = render(client, task="caption", zero_shot=True, query=BLUE_THING)
    by_hand = [
        text("Output: This is a cat wearing sunglasses."),
        END,
        text("Output: Three elephants walking in the savanna."),
        END,
        BLUE,
        text(" Output:"),
    ]
    assert answer["token_ids"] == render(client, prompt=by_hand)["token_ids"]
    sent = {"task": "caption", "zero_shot": True, "query": BLUE_THING, "max_tokens": 1}
    assert client.post("/v1/generate", json=sent).json()["usage"]["media"] == 1


VALUES = st.text(max_size=8) | st.sampled_from(["<image>", "<|endofchunk|>", "{answer}", "<ima"])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(VALUES, VALUES), max_size=2), VALUES)
def test_no_field_adds_a_picture_or_ends_an_example(
    client: httpx.Client, filled: list[tuple[str, str]], question: str
) -> None:
    examples = [{"image": RED["image"], "question": q, "answer": a} for q, a in filled]
    query = {"image": BLUE["image"], "question": question}
    ids = render(client, task="vqa", examples=examples, query=query)["token_ids"]
    assert ids.count(2) == len(filled) + 1 and ids.count(1) == len(filled)
