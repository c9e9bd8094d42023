"""Tables: CSV, TSV and JSONL with a picture or film in each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flamingo_model.training.data.document import BadRecord, MediaPart
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.source import open_source
from training_data.made import documents, jsonl, only, picture, records, shown, write

RED = picture(200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.png", RED)
    write(tmp_path / "f.mp4", b"a film")
    return tmp_path


def of_row(folder: Path, row: Any, **options: Any) -> list[Any]:
    return shown(only(open_source(str(jsonl(folder / "t.jsonl", [row])), "table", **options)))


def test_a_caption_is_learned_after_its_picture(folder: Path) -> None:
    path = write(folder / "t.csv", "image,caption\na.png, A red square. \n")
    assert shown(only(open_source(str(path)))) == [RED, "A red square."]


def test_a_question_is_read_and_its_answer_learned(folder: Path) -> None:
    path = write(folder / "t.tsv", "question\timage\tanswer\nWhat is it?\ta.png\ta square\n")
    asked = ("Question: What is it? Answer:", False)
    assert shown(only(open_source(str(path)))) == [RED, asked, " a square"]


def test_a_film_has_its_text(folder: Path) -> None:
    found = only(open_source(str(jsonl(folder / "t.jsonl", [{"video": "f.mp4", "text": "runs"}]))))
    assert found.parts[0] == MediaPart("video", b"a film") and shown(found)[1:] == ["runs"]


def test_a_prompt_is_read_before_the_text_and_may_hold_the_question(folder: Path) -> None:
    caption = {"image": "a.png", "caption": "red"}
    assert of_row(folder, caption, prompt="Output:") == [RED, ("Output:", False), " red"]
    assert of_row(folder, caption, prompt="Output: ") == [RED, ("Output: ", False), "red"]
    asked = {"image": "a.png", "question": "Colour?", "answer": "red"}
    assert of_row(folder, asked, prompt="Q: {question}\nA:")[1:] == [
        ("Q: Colour?\nA:", False),
        " red",
    ]


@pytest.mark.parametrize(
    "answers",
    [
        ["two", "2", "two"],
        [{"answer": "two", "answer_id": 1}, {"answer": "2"}, {"answer": "two"}],
        ["two", "2"],
        '["2", "two", "two"]',
        "two",
    ],
)
def test_of_several_answers_the_commonest_is_learned_and_of_equals_the_first(
    answers: Any, folder: Path
) -> None:
    row = {"image": "a.png", "question": "How many?", "answers": answers}
    assert of_row(folder, row)[2] == " two"


def test_a_cell_of_csv_may_hold_a_list_and_several_lines(folder: Path) -> None:
    text = (
        "image,question,answers\r\n"
        '"a.png","How\nmany, ""in all""?","[""one"", ""two"", ""two""]"\r\n'
        "a.png,Next?,yes\r\n"
    )
    first, second = documents(open_source(str(write(folder / "t.csv", text))))
    assert shown(first)[1:] == [('Question: How\nmany, "in all"? Answer:', False), " two"]
    assert shown(second)[1:] == [("Question: Next? Answer:", False), " yes"]
    assert [first.place, second.place] == ["t.csv:2", "t.csv:4"]


def test_rows_of_csv_are_found_however_the_file_is_written(folder: Path) -> None:
    text = '\ufeffimage,caption\n\na.png,é\n\n"a.png","x"\na.png,last'
    found = documents(open_source(str(write(folder / "t.csv", text))))
    assert [(document.place, shown(document)[1]) for document in found] == [
        ("t.csv:3", "é"),
        ("t.csv:5", "x"),
        ("t.csv:6", "last"),
    ]


def test_only_a_newline_ends_a_row(folder: Path) -> None:
    text = "image, caption\na.png,one\u2028two\x0cthree\x85four\na.png,next\n"
    first, second = documents(open_source(str(write(folder / "t.csv", text))))
    assert shown(first)[1] == "one\u2028two\x0cthree\x85four" and shown(second)[1] == "next"


def test_a_row_that_swallows_the_rest_of_the_file_is_refused_by_its_line(folder: Path) -> None:
    text = 'image,caption\na.png,good\na.png,"never closed\n' + "a.png,b\n" * 20_000
    with pytest.raises(SourceError, match=r"t\.csv:3: field larger than field limit"):
        open_source(str(write(folder / "t.csv", text)))


BAD_ROWS: list[tuple[bytes, str]] = [
    (b"a.png", "1 columns, where the header has 2"),
    (b"a.png,b,c", "3 columns"),
    (b"a.png,", "empty text"),
    (b",text", "'image' is empty"),
    (b"a.png,\xff", "not UTF-8"),
    (b"none.png,text", "none.png is missing"),
    (b'a.png,"never closed', "not a row of CSV"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_of_csv_is_one_bad_record(row: bytes, reason: str, folder: Path) -> None:
    path = write(folder / "t.csv", b"image,caption\na.png,good\n" + row)
    good, bad = sorted(records(open_source(str(path))), key=lambda found: found.place)
    assert shown(good.read()) == [RED, "good"]
    with pytest.raises(BadRecord, match=f"^t.csv:3: .*{reason}"):
        bad.read()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"caption": "a"}, "neither 'image' nor 'video'"),
        ({"image": "a.png"}, "'caption' is missing"),
        ({"image": 3, "caption": "a"}, "'image' is a number"),
        ({"image": "a.png", "question": " ", "answer": "a"}, "empty question"),
        ({"image": "a.png", "question": "a"}, "'answer' is missing"),
        ({"image": "a.png", "question": "a", "answers": []}, "'answers' is empty"),
        ({"image": "a.png", "question": "a", "answers": 4}, "'answers' is a number"),
        ({"image": "a.png", "question": "a", "answers": "[4"}, "not a JSON list"),
        ({"image": "a.png", "question": "a", "answers": [4]}, "an answer is a number"),
        ({"image": "a.png", "question": "a", "answer": True}, "'answer' is true or false"),
    ],
)
def test_a_bad_row_of_jsonl_is_one_bad_record(row: Any, reason: str, folder: Path) -> None:
    with pytest.raises(BadRecord, match=rf"^t\.jsonl:1: .*{reason}"):
        of_row(folder, row)


@pytest.mark.parametrize("header", ["picture,caption", "image,label", "image,question", ""])
def test_a_table_whose_columns_say_nothing_is_refused_at_once(header: str, folder: Path) -> None:
    with pytest.raises(SourceError, match="wanted are 'image'"):
        open_source(str(write(folder / "t.csv", f"{header}\na.png,b\n")))
