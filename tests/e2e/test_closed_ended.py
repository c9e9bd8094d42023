"""Candidates over HTTP: every figure in an answer is the one that can be asked for another way."""

from __future__ import annotations

import base64
import math
from typing import Any

import httpx
import pytest

from e2e.calls import ask, image, metric, png, text
from flamingo_server.candidates import orders

RED, GREY = image(png("red")), image(png("#808080"))
PROMPT = [RED, text("hello")]
WORDS = ["cat", "cats", "dog", "a quick brown fox", "cat", "\u00e9<|endofchunk|>", " "]
COLOURS = ("red", "blue", "green", "yellow")
CLOSE = pytest.approx


def shot(colour: str, **fields: Any) -> dict[str, Any]:
    data = base64.b64encode(png(colour)).decode()
    return {"image": {"data": data}, **fields}


SHOTS = [shot(colour, label=colour) for colour in COLOURS]
TASK = {"task": "classify", "query": shot("pink")}


def post(client: httpx.Client, route: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def classify(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """In the order of the request."""
    found = post(client, "classify", **body)["candidates"]
    assert [c["score"] for c in found] == sorted((c["score"] for c in found), reverse=True)
    return sorted(found, key=lambda candidate: candidate["index"])


def score(client: httpx.Client, prompt: list[Any], *texts: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = post(client, "score", prompt=prompt, continuations=texts)[
        "continuations"
    ]
    return found


def test_candidates_together_score_as_each_alone(client: httpx.Client) -> None:
    together = classify(client, prompt=PROMPT, candidates=WORDS)
    alone = [score(client, PROMPT, word)[0] for word in WORDS]
    for one, other, word in zip(together, alone, WORDS, strict=True):
        assert one["text"] == other["text"] == word
        assert one["sum"] == CLOSE(other["sum"], abs=1e-4)
        assert one["mean"] == CLOSE(other["sum"] / len(other["tokens"]), abs=1e-4)


def test_probabilities_are_the_softmax_of_the_chosen_score(client: httpx.Client) -> None:
    for normalize in ("sum", "mean"):
        found = classify(client, prompt=PROMPT, candidates=WORDS, normalize=normalize)
        weights = [math.exp(candidate[normalize]) for candidate in found]
        for candidate, weight in zip(found, weights, strict=True):
            assert candidate["score"] == candidate[normalize]
            assert candidate["probability"] == CLOSE(weight / sum(weights))


def test_a_score_is_what_the_prompt_would_give_those_tokens(client: httpx.Client) -> None:
    (found,) = score(client, PROMPT, "a fox")
    whole = ask(client, *PROMPT, text("a fox"), max_tokens=1, prompt_logprobs=2)["prompt_logprobs"]
    assert whole[0] is None and len(whole) == 11 and len(whole[1]["top"]) == 2
    for token, other in zip(found["tokens"], whole[6:], strict=True):
        assert (token["token_id"], token["token"]) == (other["token_id"], other["token"])
        assert token["logprob"] == CLOSE(other["logprob"], abs=1e-4)
    assert found["sum"] == CLOSE(sum(token["logprob"] for token in found["tokens"]))


def test_a_special_token_in_a_candidate_is_plain_text(client: httpx.Client) -> None:
    (found,) = score(client, PROMPT, "<|endofchunk|>")
    assert "".join(token["token"] for token in found["tokens"]) == "<|endofchunk|>"
    assert len(found["tokens"]) == len("<|endofchunk|>")


def test_behind_a_task_a_candidate_is_written_as_its_template_does(client: httpx.Client) -> None:
    body = {**TASK, "continuations": "cat"}
    (found,) = post(client, "score", **body)["continuations"]
    assert [token["token"] for token in found["tokens"]] == [" ", "c", "a", "t"]
    assert found["text"] == "cat"


def test_an_ensemble_averages_over_orders_of_the_examples(client: httpx.Client) -> None:
    body: dict[str, Any] = {**TASK, "candidates": list(COLOURS)}
    asked = orders(4, 3, seed=5)
    by_hand = [
        classify(client, **body, examples=[SHOTS[i] for i in order], normalize="mean")
        for order in asked
    ]
    found = classify(client, **body, examples=SHOTS, ensemble=3, seed=5, normalize="mean")
    for name in ("sum", "mean"):
        for index, candidate in enumerate(found):
            average = sum(one[index][name] for one in by_hand) / 3
            assert candidate[name] == CLOSE(average, abs=1e-4)
    usage = post(client, "classify", **body, examples=SHOTS, ensemble=3, seed=5)["usage"]
    assert usage["media"] == 15 and usage["cached_prompt_tokens"] > 0


def test_calibrated_scores_are_less_those_of_a_grey_picture(client: httpx.Client) -> None:
    blind = classify(client, prompt=[RED, text("or"), GREY, text("a")], candidates=WORDS)
    body: dict[str, Any] = {"prompt": [RED, text("or"), RED, text("a")], "candidates": WORDS}
    seeing = classify(client, **body)
    for found, one, other in zip(
        classify(client, **body, calibrate=True), seeing, blind, strict=True
    ):
        assert found["sum"] == CLOSE(one["sum"], abs=1e-4)
        assert found["score"] == CLOSE(one["sum"] - other["sum"], abs=1e-4)
    assert any(abs(a["sum"] - b["sum"]) > 1e-3 for a, b in zip(seeing, blind, strict=True))


def test_a_calibrated_ensemble_averages_first(client: httpx.Client) -> None:
    body: dict[str, Any] = {**TASK, "candidates": list(COLOURS), "examples": SHOTS, "ensemble": 3}
    seeing = classify(client, **body)
    blind = classify(client, **{**body, "query": shot("#808080")})
    found = classify(client, **body, calibrate=True)
    for candidate, one, other in zip(found, seeing, blind, strict=True):
        assert candidate["score"] == CLOSE(one["sum"] - other["sum"], abs=1e-4)


def test_zero_shot_words_are_reordered_without_pictures(client: httpx.Client) -> None:
    words = [{"caption": "a dog"}, {"caption": "two cats"}]
    query = {"image": shot("red")["image"]}
    body: dict[str, Any] = {"task": "caption", "query": query, "zero_shot": True}
    found = post(client, "classify", **body, examples=words, candidates=["a"], ensemble=2)
    assert found["usage"]["media"] == 2


def test_the_second_of_two_equal_requests_finds_the_prompt(client: httpx.Client) -> None:
    prompt = [image(png("olive")), text("the same long prompt, sent twice, to see it found again")]
    asked: list[dict[str, Any]] = [{"cache_salt": "a"}, {"cache_salt": "a"}, {"cache_salt": "b"}]
    for route, body in (
        ("classify", {"candidates": ["a"]}),
        ("generate", {"max_tokens": 2, "num_beams": 2}),
    ):
        salted = [{"cache_salt": f"{route} {one['cache_salt']}"} for one in asked]
        hits = metric(client, "flamingo_prefix_cache_hits")
        cached = [
            post(client, route, prompt=prompt, **body, **salt)["usage"]["cached_prompt_tokens"]
            for salt in salted
        ]
        assert cached[0] == cached[2] == 0 < cached[1]
        assert metric(client, "flamingo_prefix_cache_hits") - hits == cached[1]


def test_10_000_candidates_are_scored_and_counted(client: httpx.Client) -> None:
    before = metric(client, "flamingo_candidates_scored_total")
    words = [f"{number:04}" for number in range(10_000)]
    found = post(client, "classify", prompt=PROMPT, candidates=words)
    assert sorted(c["index"] for c in found["candidates"]) == list(range(10_000))
    assert sum(c["probability"] for c in found["candidates"]) == CLOSE(1)
    assert metric(client, "flamingo_candidates_scored_total") - before == 10_000
    assert found["timings"]["ttft_ms"] > 0 and found["id"].startswith("cls-")
    some = found["candidates"][0]
    assert some["sum"] == CLOSE(score(client, PROMPT, some["text"])[0]["sum"], abs=1e-4)
