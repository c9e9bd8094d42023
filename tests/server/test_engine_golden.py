"""Beams and ranked classes through the engine are those that the references recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes import Answer, drive
from flamingo_server.engine.request import Finished
from golden_engines import answer, new_engine, rank, recorded
from golden_sets import EVERY, GOLDEN, GoldenSet

BEAMS = 3
NUM_NEW = 12


def scores(found: Answer) -> list[float]:
    ended = [e for e in found.events if isinstance(e, Finished)]
    return [float(e.score or 0) for e in sorted(ended, key=lambda e: e.index)]


def assert_recorded(found: Answer, row: int, start: int, arrays: Any, prefix: str) -> None:
    mine = slice(row * BEAMS, (row + 1) * BEAMS)
    sequences, expected = (
        arrays[f"{prefix}sequences"][mine, start:],
        arrays[f"{prefix}scores"][mine],
    )
    for index, told in enumerate(sequences):
        ids = found.token_ids(index)
        assert told[: len(ids)].tolist() == ids
        assert told[len(ids) :].unique().numel() <= 1  # padding
    torch.testing.assert_close(torch.tensor(scores(found)), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_beams_of_all_cases_in_one_batch_are_openflamingos_by_both_rules(name: str) -> None:
    """By the older rule padding counts as length: rows with it are left to the bare search."""
    golden = GoldenSet(GOLDEN / name)
    engine = new_engine(name, [golden.meta["eoc_token_id"]])
    since, asked = golden.arrays("beam_generated_len"), []
    for case in golden.meta["cases"]:
        before = golden.arrays(case)
        for row, (prompt, padding) in enumerate(recorded(name, case)):
            start = len(prompt.token_ids) + padding
            rules = {"num_beams": BEAMS, "n": BEAMS}
            asked.append((answer(engine, prompt, **rules), row, start, since, f"{case}_"))
            if not padding:
                total = {**before, "beam3_scores": before["beam3_sequences_scores"]}
                found = answer(engine, prompt, score_rule="total", **rules)
                asked.append((found, row, start, total, "beam3_"))
    drive(engine)
    for each in asked:
        assert_recorded(*each)
    assert len(asked) > 12


@pytest.mark.parametrize("name", EVERY)
def test_beams_that_stop_are_openflamingos_under_every_option(name: str) -> None:
    golden, case = GoldenSet(GOLDEN / name), "two_shot"
    told = golden.meta["beam_eos"][case]
    engine, asked = new_engine(name, [told["eos_token_id"]]), []
    files = {"generated": "beam_generated_len", "total": f"beam_eos_{case}"}
    for rule, file in files.items():
        arrays = golden.arrays(file)
        for variant in (v for v in told["results"] if v.startswith("v")):
            options = dict(told["results"][variant]["kwargs"])
            if "min_new_tokens" in options:
                options["min_tokens"] = options.pop("min_new_tokens")
            prefix = f"eos_{case}_{variant}_" if rule == "generated" else f"{variant}_"
            [(prompt, _)] = recorded(name, case)
            options |= {"num_beams": BEAMS, "n": BEAMS, "score_rule": rule}
            found = answer(engine, prompt, **options)
            asked.append((found, 0, len(prompt.token_ids), arrays, prefix))
    drive(engine)
    for each in asked:
        assert_recorded(*each)
    assert sum(a.reasons.count("stop") for a, *_ in asked) >= 5


@pytest.mark.parametrize("name", ["fm_opt", "idefics_qkln"])
def test_beams_are_flamingo_minis_and_idefics(name: str) -> None:
    """flamingo-mini stops early and counts the prompt; IDEFICS was recorded by today's rule."""
    golden, mini = GoldenSet(GOLDEN / name), name == "fm_opt"
    engine, asked = new_engine(name, [golden.meta["eoc_id"] if mini else 2]), []
    rules = {"score_rule": "total" if mini else "generated", "early_stopping": mini}
    for case in golden.meta["cases"]:
        arrays = golden.arrays(case)
        arrays["beam3_scores"] = arrays["beam3_sequences_scores"]
        for row, (prompt, padding) in enumerate(recorded(name, case)):
            if mini and padding:
                continue
            found = answer(engine, prompt, num_beams=BEAMS, n=BEAMS, **rules)
            asked.append((found, row, len(prompt.token_ids) + padding, arrays, "beam3_"))
    drive(engine)
    for each in asked:
        assert_recorded(*each)
    assert len(asked) >= 6


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("at_once", [2, 256])
def test_classes_rank_as_openflamingo_ranks_them(name: str, at_once: int) -> None:
    """On `batch_mixed` its cache is wrong by itself: the padding is looked at."""
    golden = GoldenSet(GOLDEN / name)
    told, arrays = golden.meta["rank"], golden.arrays("rank")
    engine, asked = new_engine(name, trie_at_once=at_once), []
    for case in {key.rsplit("_cache")[0] for key in arrays}:
        for row, (prompt, _) in enumerate(recorded(name, case)):
            asked.append((case, row, rank(engine, prompt, told["class_token_ids"])))
    drive(engine)
    for case, row, found in asked:
        sums = torch.tensor([sum(one) for one in found.scores()])
        means = sums / torch.tensor([len(ids) for ids in told["class_token_ids"]])
        for cached in (0,) if case == "batch_mixed" else (0, 1):
            for norm, ours in enumerate((sums, means)):
                theirs = arrays[f"{case}_cache{cached}_norm{norm}"][row].float()
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
