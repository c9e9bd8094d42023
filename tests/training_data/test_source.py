"""Which format a path has, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flamingo_model.training.data.files import expand
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.source import FORMATS, find_format, open_source
from training_data.made import jsonl, pairs, picture, records, tar, write


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"parts": []}, "interleaved"),
        ({"text_list": [], "image_info": []}, "mmc4"),
        ({"image": "a", "caption": "b"}, "table"),
        ({"video": "a", "text": "b"}, "table"),
        ({"image": "a", "question": "b", "answers": []}, "table"),
        ({"file_name": "a", "text": "b"}, "table"),
    ],
)
def test_jsonl_is_known_by_its_first_whole_row(row: object, format: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [row])
    write(path, b"{broken\n" + path.read_bytes())
    assert find_format(str(path)) == (format, [str(path)])


def test_folders_are_known_by_what_lies_in_them(tmp_path: Path) -> None:
    tar(tmp_path / "s/0.tar", pairs([0]))
    jsonl(tmp_path / "j/train.jsonl", [{"parts": []}])
    write(tmp_path / "j/pictures/a.png", picture())
    write(tmp_path / "c/metadata.csv", "file_name,text\n")
    write(tmp_path / "p/cat/a.png", picture())
    found = {name: find_format(str(tmp_path / name))[0] for name in "sjcp"}
    assert found == {"s": "webdataset", "j": "interleaved", "c": "table", "p": "folder"}


def test_a_folder_with_two_lists_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl"):
        jsonl(tmp_path / name, [{"parts": [{"text": name}]}])
    with pytest.raises(SourceError, match=r"several files \(train.jsonl, val.jsonl\): name one"):
        open_source(str(tmp_path))
    assert len(records(open_source(f"{tmp_path}/*.jsonl"))) == 2


def test_a_format_that_is_given_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture())
    write(tmp_path / "a.txt", "text")
    jsonl(tmp_path / "list.jsonl", [{"parts": []}])
    assert find_format(str(tmp_path), "folder") == ("folder", [str(tmp_path)])
    assert find_format(str(tmp_path), "interleaved")[1] == [str(tmp_path / "list.jsonl")]


@pytest.mark.parametrize(
    ("path", "format", "options", "reason"),
    [
        ("none", "auto", {}, "none does not exist"),
        ("none-*.jsonl", "auto", {}, "does not exist"),
        ("a.txt", "auto", {}, "no folder, .jsonl, .csv, .tsv or .tar"),
        ("a.jsonl", "coco", {}, "unknown format 'coco': known are auto, interleaved"),
        ("a.jsonl", "auto", {"rot": "x"}, "interleaved has no option 'rot': it has root"),
        ("a.jsonl", "auto", {"root": 3}, "option 'root' of interleaved cannot be 3"),
        ("a.jsonl", "table", {"prompt": ["a"]}, "option 'prompt' of table cannot be ['a']"),
        ("a.jsonl", "mmc4", {"drop_missing": "yes"}, "'drop_missing' of mmc4 cannot be 'yes'"),
        ("a.jsonl", "mmc4", {"min_similarity": True}, "'min_similarity' of mmc4 cannot be True"),
        ("a.jsonl", "folder", {}, "is no folder"),
        ("a.jsonl", "webdataset", {}, "is no .tar"),
        ("words.jsonl", "auto", {}, "no line of it is a JSON object"),
        ("odd.jsonl", "auto", {}, "the columns are 'a', 'b'; wanted are"),
        (".", "auto", {}, "several files"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    path: str, format: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.txt", "text")
    jsonl(tmp_path / "a.jsonl", [{"parts": [{"text": "a"}]}])
    jsonl(tmp_path / "odd.jsonl", [{"a": 1, "b": 2}])
    write(tmp_path / "words.jsonl", "word\n")
    with pytest.raises(SourceError, match=re.escape(reason)):
        open_source(str(tmp_path / path), format, **options)


def test_every_format_has_a_name_the_errors_tell() -> None:
    assert list(FORMATS) == ["interleaved", "folder", "table", "webdataset", "mmc4"]


def test_braces_are_numbers_and_choices() -> None:
    assert expand("http://h/s-{008..010}.tar") == [
        f"http://h/s-{n}.tar" for n in ("008", "009", "010")
    ]
    assert expand("http://h/{a,b}/{9..10}.tar") == [
        f"http://h/{folder}/{number}.tar" for folder in "ab" for number in (9, 10)
    ]
    assert expand("http://h/{x}.tar?a*b") == ["http://h/{x}.tar?a*b"]


@pytest.mark.parametrize("braces", ["{9..1}", "{0..9999999999}"])
def test_braces_that_name_nothing_or_everything_are_refused(braces: str) -> None:
    with pytest.raises(SourceError, match="runs backwards|names more than 100,000 files"):
        expand(f"http://h/{braces}.tar")


def test_a_name_with_braces_and_stars_in_it_is_a_name_if_it_is_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a{1,2}[x]*.jsonl", [{"parts": []}])
    assert expand(str(path)) == [str(path)]
