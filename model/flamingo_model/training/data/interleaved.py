"""JSONL of interleaved documents: `{"parts": [{"image": "a.jpg"}, {"text": "A cat."}]}`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .document import MediaPart, Part, TextPart
from .problems import Problem, kind_of, text_of
from .rows import RowFile, Rows, RowSource, json_row, line_spans

Read = Callable[[str], bytes]


@dataclass(frozen=True, eq=False)
class InterleavedSource(RowSource):
    """A document a line. A part is `image`, `video` or `text`; text may have `"learned": false`.

    Paths start at the file's folder, or at `root`, and may not leave it.
    """

    @classmethod
    def open(cls, paths: Sequence[str], *, root: str | None = None) -> Self:
        return cls(Rows(paths, line_spans), Path(root) if root else None)

    def parts(self, file: RowFile, row: int) -> Iterator[Part]:
        return interleaved_parts(json_row(file.read(row)), self.folder(file).read)


def interleaved_parts(row: dict[str, Any], read: Read) -> Iterator[Part]:
    """The parts of one document; `read` gives the bytes of a name. Raises Problem."""
    parts = row.get("parts")
    if not isinstance(parts, list):
        raise Problem(f"'parts' is {kind_of(parts)}, not a list")
    for number, part in enumerate(parts):
        try:
            yield _part(part, read)
        except Problem as problem:
            raise type(problem)(f"parts[{number}]: {problem}") from None


def _part(part: object, read: Read) -> Part:
    if not isinstance(part, dict):
        raise Problem(f"{kind_of(part)}, not an object")
    match sorted(part):
        case ["image"]:
            return MediaPart("image", read(text_of(part, "image")))
        case ["video"]:
            return MediaPart("video", read(text_of(part, "video")))
        case ["text"]:
            return TextPart(text_of(part, "text"))
        case ["learned", "text"] if isinstance(part["learned"], bool):
            return TextPart(text_of(part, "text"), part["learned"])
        case ["learned", "text"]:
            raise Problem(f"'learned' is {kind_of(part['learned'])}, not true or false")
    names = ", ".join(map(repr, part)) or "nothing"
    raise Problem(f"a part is one of 'image', 'video', 'text' (with 'learned'), not {names}")
