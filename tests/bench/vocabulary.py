"""A byte-level BPE of OPT's size, made of syllables: every word of three is one token.

Knows no tokenizer library: the peer builds the tokenizer with its own.
"""

from __future__ import annotations

from itertools import islice, product

SIZE = 50272  # of OPT; the last two are OpenFlamingo's own
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
ADDED = ("<|endofchunk|>", "<image>")
SYLLABLES = ["".join(pair) for pair in product("bdfghjklmnprstv", "aeiou")]
SPACE = "Ġ"  # how byte-level BPE writes a space


def alphabet() -> list[str]:
    """The 256 bytes as byte-level BPE writes them: what cannot be printed is moved up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def merges() -> list[tuple[str, str]]:
    """Syllables, then a space before one, then two and three of them behind a space."""
    ones = [(syllable[0], syllable[1]) for syllable in SYLLABLES]
    begun = [(SPACE, syllable) for syllable in SYLLABLES]
    twos = [(SPACE + first, second) for first, second in product(SYLLABLES, repeat=2)]
    room = SIZE - len(SPECIAL) - len(ADDED) - 256 - len(ones) - len(begun) - len(twos)
    threes = ((SPACE + a + b, c) for c, a, b in product(SYLLABLES, repeat=3))
    return [*ones, *begun, *twos, *islice(threes, room)]


def vocabulary() -> dict[str, int]:
    """Token → id, without OpenFlamingo's two."""
    tokens = [*SPECIAL, *alphabet(), *("".join(pair) for pair in merges())]
    return {token: number for number, token in enumerate(tokens)}


def words() -> list[str]:
    """Those that are one token behind a space."""
    room = len(vocabulary()) - len(SPECIAL) - 256 - 2 * len(SYLLABLES) - len(SYLLABLES) ** 2
    return [a + b + c for c, a, b in islice(product(SYLLABLES, repeat=3), room)]
