"""Ranking: the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence


def roc_auc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """The chance that a positive scores above a negative, ties counting half.

    Raises ValueError unless both kinds are there.
    """
    num_positive = sum(labels)
    num_negative = len(labels) - num_positive
    if not num_positive or not num_negative:
        raise ValueError("ROC-AUC needs positives and negatives")
    ranks = _mean_ranks(scores)
    of_positives = sum(rank for rank, label in zip(ranks, labels, strict=True) if label)
    return (of_positives - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def _mean_ranks(scores: Sequence[float]) -> list[float]:
    """From 1, equal scores sharing the mean of their ranks."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    ranks, begin = [0.0] * len(scores), 0
    while begin < len(order):
        end = begin
        while end < len(order) and scores[order[end]] == scores[order[begin]]:
            end += 1
        for place in order[begin:end]:
            ranks[place] = (begin + 1 + end) / 2
        begin = end
    return ranks
