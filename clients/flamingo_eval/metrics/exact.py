"""Exact match of short answers."""

from __future__ import annotations


def cleaned(text: str) -> str:
    """Lower case, one blank between words, without the blanks and periods around."""
    return " ".join(text.lower().split()).strip(" .")


def exact_match(prediction: str, answers: tuple[str, ...]) -> float:
    """1 if it is one of the answers, word for word, else 0."""
    return float(cleaned(prediction) in map(cleaned, answers))
