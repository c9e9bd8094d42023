"""One server, asked as a client asks: streamed or whole, alone or in a crowd."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from e2e.calls import ask, ask_streamed, assert_same, image, joined, metric, png, text

RED, BLUE = image(png("red")), image(png("blue"))
QUESTION = [RED, text("a red square<|endofchunk|>", special_tokens=True), BLUE, text("a")]
FIXED = {"max_tokens": 24, "min_tokens": 24}
RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.2, "seed": 11},
    "choices": {"temperature": 2.0, "seed": 3, "n": 4},
    "logprobs": {"logprobs": 3},
    "narrow": {"temperature": 1.0, "seed": 1, "top_p": 0.9, "top_k": 50, "min_p": 0.001},
    "penalised": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "stopped": {"stop": ["a", "e", "i", "o", "u", "\ufffd\ufffd"], "n": 2},
    "may end": {"temperature": 3.0, "seed": 8, "min_tokens": 0, "max_tokens": 60},
    "beams": {"num_beams": 4, "n": 3, "logprobs": 2, "stream_hypotheses": True},
    "stopped beams": {"num_beams": 3, "n": 2, "stop": ["a", "e", "\ufffd\ufffd"], "min_tokens": 0},
    "long beams": {
        "num_beams": 2,
        "length_penalty": 2.0,
        "early_stopping": "never",
        "score_rule": "total",
        "repetition_penalty": 1.2,
        "min_tokens": 0,
        "max_tokens": 60,
    },
}


def choices(client: httpx.Client, *parts: dict[str, Any], **rules: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(client, *parts, **{**FIXED, **rules})["choices"]
    return found


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_streamed_events_join_to_the_whole_answer(
    client: httpx.Client, rules: dict[str, Any]
) -> None:
    events = ask_streamed(client, *QUESTION, **{**FIXED, **rules})
    assert_same(joined(events), choices(client, *QUESTION, **rules))


def test_a_stream_starts_and_ends_with_what_it_used(client: httpx.Client) -> None:
    (first, start), *_, (last, end) = ask_streamed(client, *QUESTION, n=2, **FIXED)
    assert (first, last) == ("start", "end")
    assert start["model"] == "tiny" and start["id"].startswith("gen-")
    assert start["usage"]["prompt_tokens"] == end["usage"]["prompt_tokens"] == 16
    assert end["usage"]["completion_tokens"] == 48 and end["usage"]["media"] == 2
    assert end["timings"]["ttft_ms"] > 0


def test_a_whole_answer_counts_what_it_used(client: httpx.Client) -> None:
    answer = ask(client, *QUESTION, **FIXED)
    assert len(answer["choices"][0]["token_ids"]) == answer["usage"]["completion_tokens"] == 24
    assert set(answer) == {"id", "model", "choices", "usage", "timings"}


def test_16_requests_at_once_answer_as_each_does_alone(url: str) -> None:
    def one(number: int) -> list[dict[str, Any]]:
        rules = {**FIXED, **list(RULES.values())[number % len(RULES)]}
        parts = [text("ab" * number or "c"), *QUESTION[: number % 5]]
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            if number < 8:
                found = joined(ask_streamed(client, *parts, **rules))
            else:
                found = choices(client, *parts, **rules)
        # of logprobs and scores, the last digits differ
        return [{**choice, "logprobs": None, "score": None} for choice in found]

    with ThreadPoolExecutor(16) as crowd:
        together = list(crowd.map(one, range(16)))
    assert together == [one(number) for number in range(16)]


def test_a_seed_repeats_the_answer_and_another_changes_it(client: httpx.Client) -> None:
    first, again, other = (
        choices(client, text("dice"), temperature=1.5, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_without_a_seed_answers_differ(client: httpx.Client) -> None:
    assert choices(client, text("dice"), temperature=2.0) != choices(
        client, text("dice"), temperature=2.0
    )


def test_choices_differ_among_themselves_above_temperature_0(client: httpx.Client) -> None:
    found = choices(client, text("dice"), temperature=2.0, seed=1, n=3)
    assert [choice["index"] for choice in found] == [0, 1, 2]
    assert len({choice["text"] for choice in found}) == 3


def test_a_stop_string_cuts_the_answer(client: httpx.Client) -> None:
    whole = choices(client, text("cut"))[0]["text"]
    stop = next(c for c in whole[2:] if c.isascii() and c.isprintable())
    (found,) = choices(client, text("cut"), stop=stop)
    assert found["text"] == whole[: whole.index(stop)] and found["finish_reason"] == "stop"


def test_logprobs_come_with_their_spelling_most_likely_first(client: httpx.Client) -> None:
    (found,) = choices(client, text("odds"), logprobs=2, min_tokens=0)
    assert [entry["token_id"] for entry in found["logprobs"]] == found["token_ids"]
    for entry in found["logprobs"]:
        best, second = entry["top"]
        assert best["token_id"] == entry["token_id"] and best["logprob"] >= second["logprob"]
        assert set(best) == {"token_id", "token", "logprob"}


def test_drafts_come_between_tokens_and_the_last_is_the_answer(client: httpx.Client) -> None:
    rules = {"num_beams": 3, "max_tokens": 12, "stream_hypotheses": True}
    events = ask_streamed(client, *QUESTION, **rules)
    drafts = [data["text"] for name, data in events if name == "hypothesis"]
    assert 1 < len(drafts) <= 12
    assert (
        drafts[-1]
        == joined(events)[0]["text"]
        == ask(client, *QUESTION, **rules)["choices"][0]["text"]
    )
    said = ""
    for name, data in events:
        said += data["text"] if name == "token" else ""
        assert name != "hypothesis" or data["text"].startswith(said)


def test_beams_come_best_first_with_their_scores(client: httpx.Client) -> None:
    found = choices(client, *QUESTION, num_beams=4, n=4, length_penalty=0.0, logprobs=0)
    scores = [choice["score"] for choice in found]
    assert scores == sorted(scores, reverse=True) and len({c["text"] for c in found}) > 1
    for choice in found:
        total = sum(entry["logprob"] for entry in choice["logprobs"])
        assert choice["score"] == pytest.approx(total, abs=1e-3)


def test_a_stream_starts_with_the_log_probabilities_of_its_prompt(client: httpx.Client) -> None:
    rules = {"prompt_logprobs": 1, "max_tokens": 2}
    (_, start), *_ = ask_streamed(client, *QUESTION, **rules)
    whole = ask(client, *QUESTION, **rules)["prompt_logprobs"]
    assert start["prompt_logprobs"] == whole and len(whole) == 16
    assert whole[0] is None and all(len(entry["top"]) == 1 for entry in whole[1:])


def test_a_prompt_of_text_alone_and_one_of_a_picture_alone_are_answered(
    client: httpx.Client,
) -> None:
    assert ask(client, text("only words"), **FIXED)["usage"]["media"] == 0
    assert ask(client, RED, **FIXED)["usage"]["prompt_tokens"] == 1


def test_a_data_url_is_the_same_picture(client: httpx.Client) -> None:
    by_url = {"type": "image", "image": {"url": f"data:image/png;base64,{RED['image']['data']}"}}
    assert choices(client, by_url) == choices(client, RED)


def test_the_answer_fits_what_the_context_leaves(client: httpx.Client) -> None:
    answer = ask(client, text("a" * 250), min_tokens=6)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6


def test_an_image_token_in_text_is_plain_text(client: httpx.Client) -> None:
    usage = ask(client, text("<image>"), max_tokens=1)["usage"]
    assert usage["media"] == 0 and usage["prompt_tokens"] == len("<image>")


def test_defaults_may_be_written_out(client: httpx.Client) -> None:
    written: dict[str, Any] = {"model": "tiny", "stop": [], "n": 1, "num_beams": 1, "adapter": None}
    written |= {"stream_hypotheses": False, "length_penalty": 1.0, "early_stopping": None}
    written |= {"constraint": None, "cache_salt": None, "prompt_logprobs": None, "explain": False}
    assert choices(client, text("a"), **written) == choices(client, text("a"))


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("/healthz", "application/json", '"ok"'),
        ("/readyz", "application/json", '"ready"'),
        ("/version", "application/json", '"tiny"'),
        ("/metrics", "text/plain", "flamingo_running"),
        ("/docs", "text/html", "swagger"),
        ("/openapi.json", "application/json", "/v1/generate"),
    ],
)
def test_what_operators_ask_is_answered(
    client: httpx.Client, path: str, kind: str, says: str
) -> None:
    response = client.get(path)
    assert response.status_code == 200 and says in response.text
    assert response.headers["content-type"].startswith(kind)


def test_metrics_tell_how_far_beams_ran_ahead(client: httpx.Client) -> None:
    names = ("flamingo_beam_commit_lag_tokens_count", "flamingo_beam_commit_lag_tokens_sum")
    before = [metric(client, name) for name in names]
    ask(client, *QUESTION, max_tokens=12)
    ask(client, *QUESTION, max_tokens=12, num_beams=4)
    counted = [metric(client, name) - was for name, was in zip(names, before, strict=True)]
    assert counted[0] == 1 and 1 <= counted[1] <= 12


def test_metrics_count_answers_tokens_and_pictures(client: httpx.Client) -> None:
    names = (
        "flamingo_http_responses_total",
        "flamingo_completion_tokens_total",
        "flamingo_requests_finished_total",
        "flamingo_media_hits",
    )
    ask(client, RED, **FIXED)
    before = [metric(client, name) for name in names]
    ask(client, RED, RED, **FIXED, n=2)
    counted = [metric(client, name) - was for name, was in zip(names, before, strict=True)]
    assert counted[1:] == [48, 2, 2] and counted[0] >= 1
