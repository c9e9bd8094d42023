"""An OpenFlamingo checkpoint over HTTP: picture files in, the tokens the reference chose out."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from e2e.calls import ask, image, text
from flamingo_server.config import Settings
from golden_sets import GOLDEN, GoldenSet, Row

CASES = ["zero_shot", "zero_shot_eval", "two_shot", "four_shot", "text_before", "consecutive"]
CASES += ["text_only"]
PICTURES = GOLDEN / "preprocess" / "images"
INTERVALS = {"of_opt_x1": 1, "of_mpt_x2": 2, "of_neox_x2": 2}


def settings(name: str) -> dict[str, Any]:
    return {
        "family": "openflamingo",
        "model": GOLDEN / name / "checkpoint.pt",
        "lm": str(GOLDEN / name / "lm"),
        "vision": str(GOLDEN / "of_clip_vit" / "hf"),
        "cross_attention_interval": INTERVALS[name],
    }


@pytest.fixture(scope="module", params=INTERVALS)
def served(request: pytest.FixtureRequest, serve: Any) -> Iterator[tuple[GoldenSet, httpx.Client]]:
    with serve(**settings(request.param)) as url:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            yield GoldenSet(GOLDEN / request.param), client


def prompt(row: Row) -> list[dict[str, Any]]:
    """The reference writes `<image>` into the text where a picture stands."""
    first, *rest = row.text.split("<image>")
    parts = [text(first, special_tokens=True)] if first else []
    for name, piece in zip(row.images, rest, strict=True):
        parts.append(image((PICTURES / f"{name}.png").read_bytes()))
        parts += [text(piece, special_tokens=True)] if piece else []
    return parts


@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_are_the_references(
    served: tuple[GoldenSet, httpx.Client], case: str
) -> None:
    golden, client = served
    (row,) = golden.rows(case)
    answer = ask(client, *prompt(row), max_tokens=12)
    end = golden.meta["eoc_token_id"]
    (choice,) = answer["choices"]
    assert [i for i in choice["token_ids"] if i != end] == [i for i in row.new_ids if i != end]
    assert choice["finish_reason"] == ("stop" if end in row.new_ids else "length")
    assert answer["usage"]["prompt_tokens"] == len(row.ids)


@pytest.mark.parametrize("case", CASES)
def test_beams_are_the_references_by_both_rules(
    served: tuple[GoldenSet, httpx.Client], case: str
) -> None:
    golden, client = served
    (row,) = golden.rows(case)
    before, since = golden.arrays(case), golden.arrays("beam_generated_len")
    for rule, sequences, scores in (
        ("total", before["beam3_sequences"], before["beam3_sequences_scores"]),
        ("generated", since[f"{case}_sequences"], since[f"{case}_scores"]),
    ):
        rules = {"num_beams": 3, "n": 3, "score_rule": rule, "max_tokens": 12}
        for choice, recorded, score in zip(
            ask(client, *prompt(row), **rules)["choices"], sequences, scores, strict=True
        ):
            found = choice["token_ids"]
            assert recorded[len(row.ids) :].tolist()[: len(found)] == found
            assert choice["score"] == pytest.approx(float(score), abs=1e-3)
            assert choice["finish_reason"] == "stop" or len(found) == 12


@pytest.mark.parametrize("case", ["zero_shot", "two_shot", "text_before"])
def test_class_names_score_as_the_references_do(
    served: tuple[GoldenSet, httpx.Client], case: str
) -> None:
    golden, client = served
    (row,) = golden.rows(case)
    told = golden.meta["rank"]
    for normalize, recorded in (("sum", "norm0"), ("mean", "norm1")):
        (expected,) = told["logprobs"][f"{case}_cache1_{recorded}"]
        body = {"prompt": prompt(row), "candidates": told["class_names"], "normalize": normalize}
        found = client.post("/v1/classify", json=body).raise_for_status().json()["candidates"]
        ranked = sorted(range(len(expected)), key=lambda index: -expected[index])
        assert [candidate["index"] for candidate in found] == ranked
        for candidate in found:
            assert candidate[normalize] == pytest.approx(expected[candidate["index"]], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lm": None, "vision": None}, "openflamingo needs lm, vision"),
        ({"cross_attention_interval": None}, "openflamingo needs cross_attention_interval"),
        ({"family": "native"}, "native has no use for lm, vision, cross_attention_interval"),
        ({"family": "openflamenco"}, "'openflamenco' is not known; known: auto, native, idefics, "),
        ({"cross_attention_interval": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_named(change: dict[str, Any], said: str) -> None:
    values = settings("of_opt_x1") | {"model": "checkpoint.pt"} | change
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value for name, value in values.items() if value is not None})
    assert said in str(caught.value)
