"""JSONL of interleaved documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_model.training.data.document import BadRecord, MediaPart
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.source import open_source
from training_data.made import documents, jsonl, only, picture, records, shown, write


def test_parts_come_in_their_order_with_the_files_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "sub/a.png", picture(1))
    write(tmp_path / "b.mp4", b"a film")
    parts = [{"text": " Two:\n"}, {"image": "sub/a.png"}, {"video": "b.mp4"}, {"text": "end"}]
    found = only(open_source(str(jsonl(tmp_path / "a.jsonl", [{"parts": parts, "id": 7}]))))
    assert shown(found) == [" Two:\n", picture(1), b"a film", "end"]
    assert [part.kind for part in found.parts if isinstance(part, MediaPart)] == ["image", "video"]
    assert found.place == "a.jsonl:1"


def test_text_may_be_read_without_being_learned(tmp_path: Path) -> None:
    parts = [{"text": "Q", "learned": False}, {"text": "A", "learned": True}]
    found = only(open_source(str(jsonl(tmp_path / "a.jsonl", [{"parts": parts}]))))
    assert shown(found) == [("Q", False), "A"]


def test_places_are_lines_of_the_file_blank_ones_counted(tmp_path: Path) -> None:
    text = '\ufeff{"parts": [{"text": "a"}]}\n\n  \n{"parts": [{"text": "b"}]}'
    path = write(tmp_path / "a.jsonl", text)
    found = documents(open_source(str(path)))
    assert [(document.place, *shown(document)) for document in found] == [
        ("a.jsonl:1", "a"),
        ("a.jsonl:4", "b"),
    ]


def test_several_files_are_one_source_and_places_tell_them_apart(tmp_path: Path) -> None:
    for name in ("x/a.jsonl", "y/a.jsonl"):
        jsonl(tmp_path / name, [{"parts": [{"text": name}]}])
    found = documents(open_source(f"{tmp_path}/{{x,y}}/a.jsonl"))
    assert [(document.place, *shown(document)) for document in found] == [
        ("x/a.jsonl:1", "x/a.jsonl"),
        ("y/a.jsonl:1", "y/a.jsonl"),
    ]


BAD: list[tuple[Any, str]] = [
    ({"parts": [{"image": "none.png"}, {"text": "a"}]}, r"parts\[0\]: none.png is missing"),
    ({"parts": [{"text": "  "}]}, "empty text"),
    ({"parts": [{"text": ""}]}, "empty text"),
    ({"parts": [{"image": "in/a.png"}]}, "no text to learn"),
    ({"parts": [{"text": "a", "learned": False}]}, "no text to learn"),
    ({"parts": [{"text": "a", "learned": 0}]}, "'learned' is a number, not true or false"),
    ({"parts": [{"text": 3}]}, r"parts\[0\]: 'text' is a number, not text"),
    ({"parts": [{"text": None}]}, "'text' is missing, not text"),
    ({"parts": [{"image": ["a"]}]}, "'image' is a list, not text"),
    ({"parts": [{"image": "in/a.png", "text": "a"}]}, "one of 'image', 'video', 'text'"),
    ({"parts": [{"txt": "a"}]}, "not 'txt'"),
    ({"parts": [{}]}, "not nothing"),
    ({"parts": ["a"]}, "text, not an object"),
    ({"parts": {"text": "a"}}, "'parts' is an object, not a list"),
    ({"part": []}, "'parts' is missing, not a list"),
    ([1], "not a JSON object"),
    ({"parts": [{"text": "\ud800"}]}, "not valid Unicode"),
    ({"parts": [{"image": "../outside.png"}, {"text": "a"}]}, "lies outside"),
    ({"parts": [{"image": "in/link.png"}, {"text": "a"}]}, "lies outside"),
    ({"parts": [{"image": "/etc/passwd"}, {"text": "a"}]}, "lies outside"),
    ({"parts": [{"image": "in"}, {"text": "a"}]}, "in is no file"),
    ({"parts": [{"image": "a\0b"}, {"text": "a"}]}, "is no path"),
    ({"parts": [{"image": "x" * 5000}, {"text": "a"}]}, "cannot be read|is no path|missing"),
    ({"parts": [{"image": "https://host/a.png"}, {"text": "a"}]}, "only files are read"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_record_is_named_by_place_and_reason(row: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path / "outside.png", picture())
    write(tmp_path / "data/in/a.png", picture())
    (tmp_path / "data/in/link.png").symlink_to(tmp_path / "outside.png")
    good = {"parts": [{"text": "a good one"}]}
    source = open_source(str(jsonl(tmp_path / "data/a.jsonl", [good, row])))
    (record,) = [found for found in records(source) if found.place == "a.jsonl:2"]
    with pytest.raises(BadRecord, match=rf"^a\.jsonl:2: .*({reason})"):
        record.read()


@pytest.mark.parametrize("name", ["\ud800.png", "\x1b[2J.png", "a\nb.png", "\x00.png", "é" * 999])
def test_no_name_can_break_or_steer_what_shows_it(name: str, tmp_path: Path) -> None:
    row = {"parts": [{"image": name}, {"text": "a"}]}
    (record,) = records(open_source(str(jsonl(tmp_path / "a.jsonl", [row]))))
    with pytest.raises(BadRecord) as caught:
        record.read()
    assert str(caught.value).isprintable() and str(caught.value).encode()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("line", ["{", "\xff\xfe", "[" * 100_000, '{"parts": [1e999999', "null"])
def test_a_line_that_is_no_json_is_one_bad_record(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"parts": [{"text": "a"}]}\n' + line.encode("latin-1"))
    good, bad = sorted(records(open_source(str(path))), key=lambda found: found.place)
    assert shown(good.read()) == ["a"]
    with pytest.raises(BadRecord, match=r"a.jsonl:2: not (a )?JSON"):
        bad.read()


NAMES = st.sampled_from(["parts", "image", "video", "text", "learned"])
JSON = st.recursive(
    st.sampled_from([None, True, 0.5, 3, "", "a", "../a", "\0"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=6,
)
ROWS = st.lists(JSON | st.builds(lambda parts: {"parts": [parts]}, JSON), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_whatever_a_line_says_it_is_a_document_or_a_bad_record(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    source = open_source(str(write(folder / "a.jsonl", text)), "interleaved")
    assert len(records(source)) == len(rows)
    for record in records(source):
        try:
            record.read()
        except BadRecord as error:
            assert str(error).startswith(f"{record.place}: ")


def test_root_moves_the_folder_that_paths_start_at_and_may_not_leave(tmp_path: Path) -> None:
    write(tmp_path / "pictures/a.png", picture(3))
    write(tmp_path / "b.png", picture(4))
    rows = [{"parts": [{"image": name}, {"text": "a"}]} for name in ("a.png", "../b.png")]
    path = jsonl(tmp_path / "lists/a.jsonl", rows)
    good, bad = sorted(
        records(open_source(str(path), root=str(tmp_path / "pictures"))),
        key=lambda found: found.place,
    )
    assert shown(good.read()) == [picture(3), "a"]
    with pytest.raises(BadRecord, match="lies outside"):
        bad.read()


def test_records_are_made_without_opening_what_they_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"parts": [{"image": "a.png"}, {"text": "a"}]}])
    (record,) = records(open_source(str(path)))
    write(tmp_path / "a.png", picture(5))
    assert shown(record.read()) == [picture(5), "a"]


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a.jsonl: no records"):
        open_source(str(write(tmp_path / "a.jsonl", "\n\n")), "interleaved")
