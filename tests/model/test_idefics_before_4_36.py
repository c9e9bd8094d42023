"""What IDEFICS said before transformers 4.36, and how far our rule is from it.

Until 4.35 (and in text-generation-inference) a token that sees no picture looked evenly at all
pictures of its batch, later ones and padding too: a masked softmax over equal scores. 4.36 mended
it, and that is the rule we serve. The old one is reproduced here, dense, as proof that nothing else
differs: on these prompts the two rules are 0.7 to 2.6 apart in logits, and no greedy answer is
the same. It is no option of the server: tokens would depend on pictures after them and on
their neighbours in a batch, so no prefix could be shared and no answer would be its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beams import finished, remembered
from flamingo_model.attention import DenseCrossAttention, no_media
from flamingo_model.checkpoints.idefics import open_idefics
from flamingo_model.cross_attention import MEDIA_RULES, MarkIds, media_mask
from flamingo_model.flamingo import MediaKV
from flamingo_server.engine.beam import BeamOptions, BeamSearch
from forward import run

FOLDER = Path(__file__).parents[1] / "golden" / "idefics_qkln"
META = json.loads((FOLDER / "golden_t4333" / "meta.json").read_text())
CASES = META["cases"]
RULE = MEDIA_RULES["until_end_of_text"]
MARKS = MarkIds(frozenset({META["image_token_id"]}), end_of_text=2)
MODEL = open_idefics(FOLDER).load()
ALONE = [case for case in CASES if case not in ("batch_mixed", "text_only")]
ROWS = [(case, i) for case, told in CASES.items() for i in range(len(told["prompt"]))]
every_row = pytest.mark.parametrize(("case", "row"), [r for r in ROWS if r[0] != "text_only"])


class EvenlyWhereNothingIsSeen(DenseCrossAttention):
    """A token that sees nothing gets the mean of all values."""

    def __init__(self, media: MediaKV, mask: Tensor) -> None:
        super().__init__(media, mask)
        self.is_blind = ~mask.any(-1)[..., None, None]  # [B, T, 1, 1]

    def __call__(self, block: int, q: Tensor) -> Tensor:
        evenly = self.v[block].mean(-2).unsqueeze(1)  # [B, 1, heads, D]
        return super().__call__(block, q) + evenly * self.is_blind


def recorded(case: str, row: int, name: str, folder: str = "golden_t4333") -> Any:
    return np.load(FOLDER / folder / f"{case}.npz")[name][row]


def prompt(case: str, row: int) -> list[int]:
    mask = recorded(case, row, "attention_mask").astype(bool)
    return [int(i) for i in recorded(case, row, "input_ids")[mask]]


def old_logits(case: str, row: int, ids: list[int], num_prompt: int) -> Tensor:
    """[T, vocab]; the pictures are the batch's, those of padding included."""
    pixels = torch.from_numpy(recorded(case, row, "pixel_values")).unsqueeze(1)
    index = RULE.prompt(ids[:num_prompt], MARKS)
    index += [RULE.generated(index)] * (len(ids) - num_prompt)
    media = MODEL.project_media(MODEL.encode_media(pixels).unsqueeze(0))
    return run(
        MODEL, ids, EvenlyWhereNothingIsSeen(media, media_mask(torch.tensor([index]), len(pixels)))
    )


@every_row
def test_the_old_logits_are_ours_but_for_the_tokens_that_see_nothing(case: str, row: int) -> None:
    ids, mask = prompt(case, row), recorded(case, row, "attention_mask").astype(bool)
    expected = torch.from_numpy(recorded(case, row, "logits")[mask])
    torch.testing.assert_close(old_logits(case, row, ids, len(ids)), expected, rtol=1e-4, atol=2e-4)


def test_a_batch_without_any_picture_was_right_before() -> None:
    """Uncached, that is: its own cached steps were up to 1.7 away (`meta.json`)."""
    ids = prompt("text_only", 0)
    expected = torch.from_numpy(recorded("text_only", 0, "logits"))
    torch.testing.assert_close(run(MODEL, ids, no_media), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("case", ALONE)
def test_old_greedy_answers_follow_from_the_old_rule(case: str) -> None:
    """Of prompts with pictures: without one, the old cached steps differ from its own prefill."""
    ids = prompt(case, 0)
    num_prompt, expected = len(ids), recorded(case, 0, "greedy_sequences").tolist()
    while len(ids) < len(expected):
        ids.append(int(old_logits(case, 0, ids, num_prompt)[-1].argmax()))
    assert ids == expected


@pytest.mark.parametrize("case", ALONE)
def test_old_beams_follow_from_the_old_rule(case: str) -> None:
    """With the score of its time, which counts the prompt."""
    ids, end = prompt(case, 0), 2

    def log_probs(beams: list[tuple[int, ...]]) -> Tensor:
        rows = [old_logits(case, 0, [*ids, *beam], len(ids))[-1] for beam in beams]
        return torch.stack(rows).log_softmax(-1)

    options = BeamOptions(num_beams=3, n=3, max_tokens=12, score_rule="total")
    found = finished(BeamSearch(options, len(ids), [end]), remembered(log_probs))
    file = np.load(FOLDER / "golden_t4333" / f"{case}.npz")
    for hypothesis, tokens in zip(found, file["beam3_sequences"][:, len(ids) :], strict=True):
        assert hypothesis.token_ids == tuple(tokens.tolist())[: len(hypothesis.token_ids)]
    scores = [hypothesis.score for hypothesis in found]
    np.testing.assert_allclose(scores, file["beam3_sequences_scores"], atol=1e-4)


@pytest.mark.parametrize("case", ALONE)
def test_how_far_the_two_rules_are_apart(case: str, record_property: Any) -> None:
    old, new = (recorded(case, 0, "logits", f) for f in ("golden_t4333", "golden"))
    ids = prompt(case, 0)
    first_blind = RULE.prompt(ids, MARKS).index(-1)
    apart = np.abs(old - new).max(-1)
    record_property("furthest", float(apart.max()))
    assert 0.7 < apart.max() < 2.7 and apart[first_blind] > 1e-3
    answers = (recorded(case, 0, "greedy_sequences", f) for f in ("golden_t4333", "golden"))
    assert not np.array_equal(*answers)
