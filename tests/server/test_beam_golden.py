"""Three beams through the bare models give the sequences and scores that the references gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from beams import LogProbs, finished, processed, remembered
from flamingo_model.attention import DenseCrossAttention, DenseSelfAttention, no_media
from flamingo_model.cross_attention import media_mask
from flamingo_model.positions import reach
from flamingo_model.prompt import build_renderer
from flamingo_server.engine.beam import BeamOptions, BeamSearch, Hypothesis
from golden_sets import EVERY, GOLDEN, GoldenSet, loaded

RULES = ["generated", "total"]
BEAMS = 3
BESIDE = {"of_mpt_x2", "of_neox_x2"}  # every day, of_opt_x1 stands for their batches
NUM_NEW = 12


@dataclass(frozen=True)
class Row:
    """One prompt of a recorded batch."""

    name: str
    case: str
    number: int
    padded: list[int]
    mask: list[bool]
    pixels: Tensor  # [M, 3, H, W] with the batch's padding

    @property
    def ids(self) -> list[int]:
        return [i for i, real in zip(self.padded, self.mask, strict=True) if real]

    def log_probs(self) -> LogProbs:
        """A whole forward pass; what is generated sees what the family's rule says."""
        model, tokenizer = loaded(self.name)
        renderer, ids = build_renderer(tokenizer, model.config), self.ids
        index = renderer.rule.prompt(ids, renderer.marks)
        sees, num_media = renderer.rule.generated(index), max(index) + 1
        latents = model.encode_media(self.pixels[:num_media].unsqueeze(1)) if num_media else None

        @torch.no_grad()
        def forward(beams: list[tuple[int, ...]]) -> Tensor:
            tokens = torch.tensor([[*ids, *beam] for beam in beams])
            batch, length = tokens.shape
            attend = DenseSelfAttention(batch, length, reach=reach(model.config.decoder))
            seen = torch.tensor([index + [sees] * len(beams[0])])
            look = no_media
            if latents is not None:
                media = model.project_media(latents.unsqueeze(0))
                look = DenseCrossAttention(media, media_mask(seen, num_media))
            hidden = model(tokens, torch.arange(length).expand(batch, -1), attend, look)
            return model.logits(hidden[:, -1]).log_softmax(-1)

        return remembered(forward)


def rows(name: str, case: str) -> Iterator[Row]:
    arrays = GoldenSet(GOLDEN / name).arrays(case)
    pixels = arrays.get("vision_x", arrays.get("pixel_values"))
    for number, ids in enumerate(arrays["input_ids"]):
        seen = torch.zeros(0, 3, 32, 32) if pixels is None else pixels[number].view(-1, 3, 32, 32)
        mask = arrays["attention_mask"][number].bool().tolist()
        yield Row(name, case, number, ids.tolist(), mask, seen)


def search(row: Row, log_probs: LogProbs, stop: int, rule: Any, **kwargs: Any) -> list[Hypothesis]:
    mine = {"length_penalty", "early_stopping"}
    rules = {key: value for key, value in kwargs.items() if key not in mine}
    kwargs = {key: value for key, value in kwargs.items() if key in mine}
    options = BeamOptions(BEAMS, n=BEAMS, max_tokens=NUM_NEW, score_rule=rule, **kwargs)
    scores = processed(log_probs, row.padded, [stop], **rules)
    return finished(BeamSearch(options, len(row.padded), [stop]), scores)


def assert_recorded(found: list[Hypothesis], row: Row, sequences: Tensor, scores: Tensor) -> None:
    mine = slice(row.number * BEAMS, (row.number + 1) * BEAMS)
    for hypothesis, recorded in zip(found, sequences[mine, len(row.padded) :], strict=True):
        length = len(hypothesis.token_ids)
        assert recorded[:length].tolist() == list(hypothesis.token_ids)
        assert hypothesis.finish_reason == "stop" or length == NUM_NEW
        assert recorded[length:].unique().numel() <= 1  # padding
    torch.testing.assert_close(
        torch.tensor([h.score for h in found]), scores[mine], atol=1e-4, rtol=1e-5
    )


OPENFLAMINGO = [(n, case) for n in EVERY for case in GoldenSet(GOLDEN / n).meta["cases"]]
OTHERS = [
    (name, case)
    for name in ("fm_opt", "idefics_qkln")
    for case in GoldenSet(GOLDEN / name).meta["cases"]
]
TO_A_STOP = [
    pytest.param(
        name, case, rule, marks=[pytest.mark.slow] * (case != "two_shot" and name in BESIDE)
    )
    for name in EVERY
    for case in ("two_shot", "batch_mixed")
    for rule in RULES
]


@pytest.mark.parametrize(("name", "case"), OPENFLAMINGO)
def test_beams_are_openflamingos_by_both_rules(name: str, case: str) -> None:
    golden = GoldenSet(GOLDEN / name)
    before, since = golden.arrays(case), golden.arrays("beam_generated_len")
    for row in rows(name, case):
        log_probs, stop = row.log_probs(), golden.meta["eoc_token_id"]
        found = search(row, log_probs, stop, "total")
        assert_recorded(found, row, before["beam3_sequences"], before["beam3_sequences_scores"])
        found = search(row, log_probs, stop, "generated")
        assert_recorded(found, row, since[f"{case}_sequences"], since[f"{case}_scores"])


@pytest.mark.parametrize(("name", "case", "rule"), TO_A_STOP)
def test_beams_that_stop_are_openflamingos_under_every_option(
    name: str, case: str, rule: str
) -> None:
    """Ten ways to search, with an end token that the beams really emit."""
    golden = GoldenSet(GOLDEN / name)
    told, file = golden.meta["beam_eos"][case], f"beam_eos_{case}"
    arrays, prefix = golden.arrays(file), ""
    if rule == "generated":
        arrays, prefix = golden.arrays("beam_generated_len"), f"eos_{case}_"
    reasons = []
    for row in rows(name, case):
        log_probs = row.log_probs()
        for variant in (v for v in told["results"] if v.startswith("v")):
            options = told["results"][variant]["kwargs"]
            found = search(row, log_probs, told["eos_token_id"], rule, **options)
            recorded = (arrays[f"{prefix}{variant}_{what}"] for what in ("sequences", "scores"))
            assert_recorded(found, row, *recorded)
            reasons += [h.finish_reason for h in found]
    assert reasons.count("stop") >= 5


@pytest.mark.parametrize(("name", "case"), OTHERS)
def test_beams_are_flamingo_minis_and_idefics(name: str, case: str) -> None:
    """flamingo-mini stops early and counts the prompt; IDEFICS was recorded by today's rule."""
    golden, mini = GoldenSet(GOLDEN / name), name == "fm_opt"
    arrays = golden.arrays(case)
    stop = golden.meta["eoc_id"] if mini else 2
    for row in rows(name, case):
        rule = "total" if mini else "generated"
        found = search(row, row.log_probs(), stop, rule, early_stopping=mini)
        assert_recorded(found, row, arrays["beam3_sequences"], arrays["beam3_sequences_scores"])


@pytest.mark.parametrize("variant", ["g0", "g1", "g3"])
@pytest.mark.parametrize("name", EVERY)
def test_one_beam_is_openflamingos_greedy_answer(name: str, variant: str) -> None:
    """Without the repetition penalty, which greedy search has on logits."""
    golden, case = GoldenSet(GOLDEN / name), "batch_mixed"
    told = golden.meta["beam_eos"][case]
    recorded = golden.arrays(f"beam_eos_{case}")[f"{variant}_sequences"]
    stop, rules = told["eos_token_id"], told["results"][variant]["kwargs"]
    for row in rows(name, case):
        scores = processed(row.log_probs(), row.padded, [stop], **rules)
        options = BeamOptions(1, max_tokens=NUM_NEW, early_stopping="never")
        [found] = finished(BeamSearch(options, len(row.padded), [stop]), scores)
        answer = recorded[row.number, len(row.padded) :].tolist()
        assert answer[: len(found.token_ids)] == list(found.token_ids)
        assert found.finish_reason == "stop" or len(found.token_ids) == NUM_NEW
