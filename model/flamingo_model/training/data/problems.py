"""What can be wrong with a source, or with one of its records; and how the latter is said."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .document import BadRecord, Document, Part, Record, TextPart

_LONGEST = 300  # characters of a place or a reason


class SourceError(ValueError):
    """Nothing can be read at all: no such file, an unknown format or option, an empty table."""


class Problem(ValueError):
    """Why one record is bad; whoever knows the record's place turns it into a `BadRecord`."""


class Missing(Problem):
    """A picture or film that is named and not there."""


def record(place: str, parts: Callable[[], Iterable[Part]]) -> Record:
    """A record whose `read` raises `BadRecord`, and nothing else, for what is wrong with data."""
    place = printable(place)

    def read() -> Document:
        try:
            return Document(_checked(tuple(parts())), place)
        except Problem as problem:
            raise BadRecord(f"{place}: {printable(str(problem))}") from None
        except OSError as error:
            raise BadRecord(f"{place}: cannot be read: {printable(str(error))}") from None

    return Record(place, read)


def bad(place: str, reason: str) -> Record:
    """A record known to be bad before it is read."""

    def parts() -> Iterable[Part]:
        raise Problem(reason)

    return record(place, parts)


def printable(text: str) -> str:
    """Names are a stranger's too: no terminal is steered by one, and no log fails to encode it."""
    if text.isprintable() and len(text) <= _LONGEST:
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_LONGEST])
    return "".join(shown) + ("…" if len(text) > _LONGEST else "")


def text_of(row: object, name: str) -> str:
    """A field that must be text."""
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise Problem(f"{name!r} is {kind_of(value)}, not text")
    return value


def kind_of(value: object) -> str:
    """What JSON calls it, for messages."""
    if value is None:
        return "missing"
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "text"}
    return kinds.get(type(value), "a number")


def _checked(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    texts = [part for part in parts if isinstance(part, TextPart)]
    for part in texts:
        if not part.text.strip():
            raise Problem("empty text")
        try:
            part.text.encode()
        except UnicodeEncodeError:  # half a surrogate pair: no tokenizer takes it
            raise Problem("the text is not valid Unicode") from None
    if not any(part.learned for part in texts):
        raise Problem("there is no text to learn")
    return parts
