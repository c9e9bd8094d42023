"""Tables, as CSV, TSV or JSONL: a picture or film in each row, and what is said of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .document import MediaPart, Part, TextPart
from .files import Folder
from .problems import Problem, SourceError, kind_of, text_of
from .rows import (
    RowFile,
    Rows,
    RowSource,
    csv_header,
    csv_row,
    csv_spans,
    delimiter,
    json_row,
    line_spans,
)

MEDIA = ("image", "video", "file_name")  # the last is Hugging Face's name for a picture
CAPTIONS = ("caption", "text")
QUESTION = "Question: {question} Answer:"  # Alayrac et al. 2022, appendix D


@dataclass(frozen=True, eq=False)
class TableSource(RowSource):
    """Columns `image` or `video`, with `caption` or `text`, or `question` and `answer` (`answers`).

    `prompt` is read, not learned, between the medium and the text; the place of `{question}` is
    the question's. Of several answers the commonest is learned, of equals the first.
    """

    prompt: str | None
    headers: Mapping[Path, Sequence[str]]

    @classmethod
    def open(
        cls, paths: Sequence[str], *, root: str | None = None, prompt: str | None = None
    ) -> Self:
        headers = {Path(path): csv_header(Path(path)) for path in paths if is_csv(path)}
        for path, header in headers.items():
            check_columns(header, str(path))
        rows = Rows(paths, lambda path: csv_spans(path) if path in headers else line_spans(path))
        return cls(rows, Path(root) if root else None, prompt, headers)

    def parts(self, file: RowFile, row: int) -> Iterator[Part]:
        cells, header = file.read(row), self.headers.get(file.path)
        fields = csv_row(header, cells, delimiter(file.path)) if header else json_row(cells)
        yield self._medium(fields, self.folder(file))
        yield from said_parts(fields, self.prompt)

    def _medium(self, fields: dict[str, Any], folder: Folder) -> MediaPart:
        column = next((name for name in MEDIA if name in fields), None)
        if column is None:
            raise Problem("neither 'image' nor 'video'")
        name = text_of(fields, column)
        if not name.strip():
            raise Problem(f"{column!r} is empty")
        return MediaPart("video" if column == "video" else "image", folder.read(name))


def is_csv(path: str) -> bool:
    return Path(path).suffix.lower() in (".csv", ".tsv")


def check_columns(names: Sequence[str], where: str) -> None:
    """Raises SourceError where a table with these columns gives no document."""
    is_said = {"question"} < {*names} & {"question", "answer", "answers"} or {*names} & {*CAPTIONS}
    if not ({*names} & {*MEDIA} and is_said):
        raise SourceError(
            f"{where}: the columns are {', '.join(map(repr, names)) or 'none'}; wanted are 'image' "
            "or 'video', and 'caption' or 'text', or 'question' and 'answer' or 'answers'"
        )


def said_parts(fields: dict[str, Any], prompt: str | None = None) -> Iterator[TextPart]:
    """What is read, then what is learned, of a row that may be a question's. Raises Problem."""
    if "question" in fields:
        question = text_of(fields, "question").strip()
        if not question:
            raise Problem("empty question")
        asked = (QUESTION if prompt is None else prompt).replace("{question}", question)
        return prompted(asked, _answer(fields))
    column = next((name for name in CAPTIONS if name in fields), "caption")
    return prompted(prompt or "", text_of(fields, column))


def prompted(prompt: str, text: str) -> Iterator[TextPart]:
    """The learned text, with a blank before it where a prompt goes before."""
    if not text.strip():
        raise Problem("empty text")
    if prompt:
        yield TextPart(prompt, learned=False)
    yield TextPart(f" {text.strip()}" if prompt and not prompt[-1].isspace() else text.strip())


def _answer(fields: dict[str, Any]) -> str:
    if "answers" not in fields:
        return text_of(fields, "answer")
    answers = [_one_answer(answer) for answer in _listed(fields["answers"])]
    if not answers:
        raise Problem("'answers' is empty")
    return Counter(answers).most_common(1)[0][0]


def _listed(answers: object) -> list[object]:
    """A JSON list, be it within a cell of CSV, or one answer alone."""
    if isinstance(answers, str) and answers.lstrip().startswith("["):
        try:
            answers = json.loads(answers)
        except (ValueError, RecursionError):
            raise Problem("'answers' is not a JSON list") from None
    if isinstance(answers, str):
        return [answers]
    if not isinstance(answers, list):
        raise Problem(f"'answers' is {kind_of(answers)}, not a list")
    return answers


def _one_answer(answer: object) -> str:
    """Text, or VQAv2's `{"answer": text, …}`."""
    if isinstance(answer, dict):
        return text_of(answer, "answer")
    if not isinstance(answer, str):
        raise Problem(f"an answer is {kind_of(answer)}, not text")
    return answer
