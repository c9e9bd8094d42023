"""VQA accuracy with the official normalisation (Antol et al. 2015; the tool at visualqa.org).

An answer that three of the ten people gave is right; one that fewer gave is right in part. The
normalisation is that of the official tool to the letter, oddities included: see `_punctuation`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_DIGITS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_SINGLE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd "
    "he's how'd how'll how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't "
    "must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll "
    "somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'll who's who've why'll "
    "why're why's won't would've wouldn't y'all you'd you'll you're you've "
).split()
_SEVERAL = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've 'ow's'at she'd've shouldn't've "
    "somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've "
    "wouldn't've y'all'll y'all'd've you'd've "
).split()
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official tool hands a flag of this value over as the count


def _contractions() -> dict[str, str]:
    """Words of one apostrophe are known without it, words of several with one missing."""
    found = {word.replace("'", ""): word for word in _SINGLE}
    for word in _SEVERAL:
        found |= {word[:i] + word[i + 1 :]: word for i, c in enumerate(word) if c == "'"}
    return found | {"somebody'd": "somebodyd"}  # as the official table has it


CONTRACTIONS = _contractions()


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """0 to 1: over all ways to leave one person out, how many of the others agree, three enough.

    Where all people agree nothing is normalised, as in the official tool. Raises ValueError without
    answers.
    """
    if not answers:
        raise ValueError("a question needs the answers of people")
    said, given = _plain(prediction), [_plain(answer) for answer in answers]
    if len(set(given)) > 1:
        said, given = normalised(said), [normalised(answer) for answer in given]
    matches = sum(answer == said for answer in given)
    left_out = (matches - (answer == said) for answer in given)
    return sum(min(1.0, others / 3) for others in left_out) / len(given)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, with digits and apostrophes."""
    words = [_DIGITS.get(word, word) for word in _punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    """A mark beside a blank goes; one between letters leaves a blank, unless some number of the
    text has a comma in it. A period goes unless a digit follows."""
    found = text
    for mark in _PUNCTUATION:
        beside_blank = mark + " " in text or " " + mark in text
        goes = beside_blank or _COMMA_IN_NUMBER.search(text) is not None
        found = found.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)
