"""The metrics against what the official tools said of texts that data/record_metrics.py made."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flamingo_eval.metrics.cider import cider
from flamingo_eval.metrics.exact import exact_match
from flamingo_eval.metrics.intervals import bootstrap, mean_interval, paired, wilson
from flamingo_eval.metrics.ptb import tokenise, words
from flamingo_eval.metrics.ranking import roc_auc
from flamingo_eval.metrics.vqa import CONTRACTIONS, accuracy, normalised

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "recorded_metrics.json").read_text()
)
CLOSE = pytest.approx


def test_cider_is_the_official_tools_on_200_captions() -> None:
    captions = RECORDED["captions"]
    assert len(captions) == 200
    found = cider([c["prediction"] for c in captions], [c["references"] for c in captions])
    assert found == CLOSE(RECORDED["cider"], abs=1e-6)
    assert fmean(found) == CLOSE(fmean(RECORDED["cider"]), abs=1e-6)


def test_vqa_accuracy_is_the_official_tools_on_200_answers() -> None:
    answers = RECORDED["answers"]
    assert len(answers) == 200 and len(set(RECORDED["vqa"])) > 3
    found = [accuracy(one["prediction"], one["answers"]) for one in answers]
    assert found == CLOSE(RECORDED["vqa"], abs=1e-6)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog isn't here.", "a man 's dog is n't here ."),
        ("They can't, cannot; won't!!", "they ca n't , can not ; wo n't !!"),
        ("It's 3:30 p.m. in the U.S. now", "it 's 3:30 p.m. in the u.s. now"),
        ('"Hello," he (said)...', "`` hello , '' he -lrb- said -rrb- ..."),
        ("a well-known T-shirt -- $5.99", "a well-known t-shirt -- $ 5.99"),
        ("dogs’ toys and cats’ “quotes”", "dogs ' toys and cats ' `` quotes ''"),
        ("at 10:30am, 10ft, 4x4", "at 10:30 am , 10ft , 4x4"),
        ("'tis gonna rock 'n' roll, y'all", "'t is gon na rock 'n' roll , y' all"),
        ("½ cup and/or 1/2", "1/2 cup and/or 1/2"),
    ],
)
def test_a_caption_is_split_as_the_java_tool_splits_it(caption: str, tokens: str) -> None:
    assert " ".join(tokenise(caption)) == tokens


def test_punctuation_does_not_count_but_brackets_do() -> None:
    assert words("A cat; (black), sits...") == ["a", "cat", "-lrb-", "black", "-rrb-", "sits"]


def test_cider_is_highest_for_a_reference_itself() -> None:
    references = [["a red bus on a street"], ["two cats lie on a bed"], ["a man eats pizza"]]
    own = cider([some[0] for some in references], references)
    assert own == CLOSE([10.0] * 3) and cider(["", "x", "a"], references)[:2] == [0.0, 0.0]
    with pytest.raises(ValueError, match="reference"):
        cider(["a"], [[]])


def test_three_who_agree_make_an_answer_right() -> None:
    assert accuracy("Two.", ["two"] * 4 + ["dog"] * 6) == CLOSE(1.0)
    assert accuracy("2", ["two"] * 3 + ["dog"] * 7) == CLOSE((3 * 2 / 3 + 7) / 10)
    assert accuracy("the dog", ["dog"] * 10) == 0  # all agree: nothing is normalised
    with pytest.raises(ValueError, match="answers"):
        accuracy("a", [])


def test_answers_are_normalised() -> None:
    assert normalised("The T-shirt's, isnt it? 1,000.5") == "tshirt's isn't it 1000.5"
    assert normalised("black/white") == "black white"
    assert len(CONTRACTIONS) == 118 and CONTRACTIONS["hadnt've"] == "hadn't've"


@pytest.mark.parametrize("seed", range(5))
def test_roc_auc_is_scikit_learns_ties_included(seed: int) -> None:
    dice = random.Random(seed)
    labels = [dice.random() < 0.4 for _ in range(60)]
    scores = [dice.randint(0, 9) / 10 for _ in range(60)]
    assert roc_auc(labels, scores) == CLOSE(roc_auc_score(labels, scores))


def test_roc_auc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        roc_auc([True], [1.0])


def test_an_exact_answer_may_differ_in_case_blanks_and_a_period() -> None:
    assert exact_match(" Red  heart.", ("red heart", "heart")) == 1
    assert exact_match("red hearts", ("red heart",)) == 0


def test_wilsons_interval_is_the_textbooks() -> None:
    assert wilson(8, 10) == CLOSE((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == CLOSE(0) and wilson(10, 10)[1] == CLOSE(1)


def test_the_bootstraps_interval_holds_the_mean_and_repeats() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400).tolist()
    low, high = mean_interval(values)
    assert low < fmean(values) < high and high - low == CLOSE(4 * 1 / 20, rel=0.15)
    found = bootstrap(400, lambda chosen: fmean(values[i] for i in chosen))
    assert found == CLOSE((low, high), abs=0.03) and mean_interval(values) == (low, high)


def test_a_draw_without_a_value_is_left_out() -> None:
    labels, scores = [True] + [False] * 3, [0.9, 0.1, 0.2, 0.3]
    statistic = lambda chosen: roc_auc([labels[i] for i in chosen], [scores[i] for i in chosen])  # noqa: E731
    assert bootstrap(4, statistic) == (1.0, 1.0)


def test_pairs_tell_apart_what_means_alone_would_not() -> None:
    dice = np.random.default_rng(1)
    theirs = dice.normal(0, 10, 200)
    difference, (low, high) = paired((theirs + 0.5).tolist(), theirs.tolist())
    assert difference == CLOSE(0.5) and low == CLOSE(0.5) and high == CLOSE(0.5)
