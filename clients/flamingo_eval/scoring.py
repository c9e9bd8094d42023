"""Answers → figures: the metric of a task, and the 95% interval that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from flamingo_eval.examples import Asked
from flamingo_eval.metrics.cider import cider
from flamingo_eval.metrics.exact import exact_match
from flamingo_eval.metrics.intervals import Interval, bootstrap, mean_interval, wilson
from flamingo_eval.metrics.ranking import roc_auc
from flamingo_eval.metrics.vqa import accuracy

Values = list[float]


def _mean(asked: Sequence[Asked], values: Values) -> float:
    return fmean(values)


@dataclass(frozen=True)
class Metric:
    """`values` of the cases, one each; `total` makes one figure of them, their mean unless said.

    Published figures are `scale` times as large. `is_share`: each case is right or wrong.
    """

    name: str
    values: Callable[[Sequence[Asked]], Values]
    scale: float = 1.0
    is_share: bool = False
    total: Callable[[Sequence[Asked], Values], float] = _mean

    def interval(self, asked: Sequence[Asked], values: Values) -> Interval:
        """Wilson's for shares, else the bootstrap's over cases."""
        if self.is_share:
            return wilson(sum(values), len(values))
        if self.total is _mean:
            return mean_interval(values)

        def total(chosen: Sequence[int]) -> float:
            return self.total([asked[i] for i in chosen], [values[i] for i in chosen])

        return bootstrap(len(values), total)


def _vqa(asked: Sequence[Asked]) -> Values:
    return [accuracy(one.answer.text, one.question.query.references) for one in asked]


def _cider(asked: Sequence[Asked]) -> Values:
    references = [one.question.query.references for one in asked]
    return cider([one.answer.text for one in asked], references)


def _exact(asked: Sequence[Asked]) -> Values:
    return [
        exact_match(one.answer.text, one.question.query.references or (one.question.query.answer,))
        for one in asked
    ]


def _chosen(asked: Sequence[Asked]) -> Values:
    return [float(one.answer.text == one.question.query.answer) for one in asked]


def _margin(asked: Sequence[Asked]) -> Values:
    """How much likelier yes is than no."""
    return [one.answer.scores["yes"] - one.answer.scores["no"] for one in asked]


def _auc(asked: Sequence[Asked], values: Values) -> float:
    return roc_auc([one.question.query.answer == "yes" for one in asked], values)


VQA_ACCURACY = Metric("VQA accuracy", _vqa, scale=100)
CIDER = Metric("CIDEr", _cider, scale=100)
EXACT = Metric("exact match", _exact, is_share=True)
TOP1 = Metric("top-1 by likelihood", _chosen, is_share=True)
ROC_AUC = Metric("ROC-AUC", _margin, scale=100, total=_auc)
