"""Captions → words, as the official CIDEr tool does it with Stanford's PTBTokenizer 3.4.1.

That one is a program in Java; this is its behaviour on captions, compared with it on those of
`tests/data/recorded_captions.json`. It may differ on what captions of COCO and Flickr30k hardly
have: abbreviations outside `ABBREVIATIONS`, web addresses, emoticons, SGML entities and scripts
without blanks.
"""

from __future__ import annotations

import re

REMOVED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]
    + [".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""The official tool's list. Its brackets never match, because words are lower-case by then."""

# A period belongs to the first kind always, to the second unless it ends the caption.
ABBREVIATIONS = (
    "mr|mrs|ms|messrs|dr|drs|prof|st|ste|mt|ft|rev|hon|gen|col|lt|sgt|capt|cmdr|gov|sen|rep|supt|vs"
    "|jr|sr|inc|co|cos|corp|ltd|plc|bros|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|wed|thu|fri|etc"
    "|ave|blvd|rd|hwy|bldg|est|tel|al|ph\\.d"
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_FRACTIONS = {"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_OTHERS = {"\u2026": "...", "\u2013": "--", "\u2014": "--", "\u201c": "``", "\u201d": "''"} | {
    "\u20ac": "$",
    "\u00a3": "#",
}
_SAME = _BRACKETS | _FRACTIONS | _OTHERS
_TWO_WORDS = re.compile(
    r"(can)(not)|(gon)(na)|(got)(ta)|(lem)(me)|(gim)(me)|(wan)(na)|('t)(is|was)"
)
_L = r"[^\W\d_]"  # a letter
_TOKEN = re.compile(
    rf"""
      (?P<address> https?://[^\s"<>]*[^\s"<>.,;:!?)'] | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )
    | (?P<short> (?:{_L}\.){{2,}}(?!\w) | (?:{ABBREVIATIONS})\.(?!\w) | {_L}\.(?=\s+\w)
               | (?:no|fig)\.(?=\s*\d) )
    | (?P<old> '\d0s\b | 'n' | 't(?:is|was)\b | o'clock\b | y'(?=all\b) | ma'am\b | ol'
             | 'em\b | 'n\b | [dlo]'{_L}+ | {_L}+&{_L}+ )
    | (?P<clitic> n't\b | '(?:s|m|d|ll|re|ve)\b )
    | (?P<number> \d+(?:[.,:/]\d+)+ | \d+\w*(?:-\w+)* )
    | (?P<stem> {_L}+ (?=n't\b) )
    | (?P<word> @? {_L}\w* (?:[-/]\w+ | \.{_L}\w* )* )
    | (?P<mark> \.{{3}} | -{{2,}} | [!?]{{2,}} | `` | '' | \S )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenise(caption: str) -> list[str]:
    """All tokens, lower-case, punctuation included."""
    text = caption.replace("\n", " ").replace("\u2019", "'").replace("\u2018", "`")
    found = list[str]()
    for match in _TOKEN.finditer(text.lower()):
        token = match.group()
        if two := _TWO_WORDS.fullmatch(token):
            found += [part for part in two.groups() if part]
        elif token == '"':
            found.append("''" if _closes(text, match.start()) else "``")
        else:
            found.append(_SAME.get(token, "--" if set(token) == {"-"} and token != "-" else token))
    return found


def _closes(text: str, at: int) -> bool:
    """A quotation mark behind a letter, not before one."""
    return at > 0 and not text[at - 1].isspace() and text[at - 1] not in "([{"


def words(caption: str) -> list[str]:
    """What CIDEr counts: tokens without punctuation."""
    return [token for token in tokenise(caption) if token not in REMOVED]
