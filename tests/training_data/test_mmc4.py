"""MMC4's documents, as JSONL and in shards."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from flamingo_model.training.data.document import BadRecord
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.source import find_format, open_source
from training_data.made import documents, jsonl, only, records, shown, tar, write

SENTENCES = ["One. ", "Two.", "", "Four.", "Five."]


def info(name: str, at: int, similarity: float = 0.3) -> dict[str, Any]:
    return {"image_name": name, "matched_text_index": at, "matched_sim": similarity}


def page(*infos: Any, sentences: Any = SENTENCES) -> dict[str, Any]:
    return {"text_list": sentences, "image_info": list(infos), "url": "https://host"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        write(tmp_path / f"{name}.png", name)
    return tmp_path


def of_page(folder: Path, row: dict[str, Any], **options: Any) -> list[Any]:
    return shown(only(open_source(str(jsonl(folder / "docs.jsonl", [row])), **options)))


def test_a_picture_stands_before_the_sentence_it_is_matched_to(folder: Path) -> None:
    found = of_page(folder, page(info("a.png", 3), info("b.png", 1)))
    assert found == ["One.", b"b", "Two.", b"a", "Four. Five."]


def test_pictures_may_come_first_together_and_last(folder: Path) -> None:
    found = of_page(folder, page(info("c.png", 0), info("a.png", 4), info("b.png", 0)))
    assert found == [b"c", b"b", "One. Two. Four.", b"a", "Five."]


def test_pictures_of_an_empty_sentence_stand_before_the_next(folder: Path) -> None:
    assert of_page(folder, page(info("a.png", 2))) == ["One. Two.", b"a", "Four. Five."]


def test_the_less_similar_are_left_out_where_that_is_asked(folder: Path) -> None:
    row = page(info("a.png", 1, 0.2), info("b.png", 3, 0.24))
    assert of_page(folder, row, min_similarity=0.24) == ["One. Two.", b"b", "Four. Five."]
    assert of_page(folder, row, min_similarity=1) == ["One. Two. Four. Five."]
    assert b"a" in of_page(folder, row)


def test_missing_pictures_are_bad_or_where_asked_left_out(folder: Path) -> None:
    row = page(info("gone.png", 1), info("b.png", 3))
    with pytest.raises(BadRecord, match=r"docs.jsonl:1: image_info\[0\]: gone.png is missing"):
        of_page(folder, row)
    assert of_page(folder, row, drop_missing=True) == ["One. Two.", b"b", "Four. Five."]


def test_pictures_may_lie_elsewhere(folder: Path) -> None:
    write(folder / "lists/docs.jsonl", json.dumps(page(info("a.png", 0))))
    found = only(open_source(str(folder / "lists/docs.jsonl"), root=str(folder)))
    assert shown(found)[0] == b"a"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (page(info("a.png", 5)), "names none of the 5 sentences"),
        (page(info("a.png", -1)), "names none"),
        (page({"image_name": "a.png", "matched_text_index": True}), "names none"),
        (page("a.png"), "names none"),
        (page({"matched_text_index": 0}), "'image_name' is missing"),
        (page({"matched_text_index": 0, "image_base64": "%"}), "not base64"),
        (page({"matched_text_index": 0, "image_base64": 3}), "'image_base64' is a number"),
        (page(info("../a.png", 0)), "lies outside"),
        (page(sentences=["a", 3]), r"text_list\[1\] is a number"),
        (page(sentences="a"), "'text_list' is text, not a list"),
        (page(sentences=["", " "]), "no text to learn"),
        ({"text_list": ["a"]}, "'image_info' is missing, not a list"),
    ],
)
def test_a_bad_page_is_named_by_place_and_reason(
    row: dict[str, Any], reason: str, folder: Path
) -> None:
    with pytest.raises(BadRecord, match=rf"^docs\.jsonl:1: .*{reason}"):
        of_page(folder / "in", row, format="mmc4")


def test_a_similarity_is_asked_for_only_where_it_matters(folder: Path) -> None:
    row = page({"image_name": "a.png", "matched_text_index": 0})
    assert of_page(folder, row)[0] == b"a"
    with pytest.raises(BadRecord, match="'matched_sim' is missing, not a number"):
        of_page(folder, row, min_similarity=0.2)


def test_shards_hold_documents_with_their_pictures_in_them_or_beside(tmp_path: Path) -> None:
    inside = {"matched_text_index": 1, "image_base64": base64.b64encode(b"in").decode()}
    shards = {
        "x/0.json": json.dumps(page(inside)),
        "x/1.json": json.dumps(page(info("far.png", 0))),
        "x/far.png": b"far",
        "y.png": b"nobody's",
    }
    tar(tmp_path / "s-0.tar", shards)
    tar(tmp_path / "s-1.tar", {"2.json": json.dumps(page(info("gone.png", 0)))})
    source = open_source(f"{tmp_path}/s-{{0..1}}.tar", "mmc4", drop_missing=True)
    assert {found.place: shown(found) for found in documents(source)} == {
        "s-0.tar:x/0": ["One.", b"in", "Two. Four. Five."],
        "s-0.tar:x/1": [b"far", "One. Two. Four. Five."],
        "s-1.tar:2": ["One. Two. Four. Five."],
    }
    strict = open_source(f"{tmp_path}/s-{{0..1}}.tar", "mmc4")
    with pytest.raises(BadRecord, match=r"s-1.tar:2: image_info\[0\]: gone.png is not in the"):
        [record.read() for record in records(strict)]


def test_pages_are_known_by_their_looks(folder: Path) -> None:
    assert find_format(str(jsonl(folder / "docs.jsonl", [page()])))[0] == "mmc4"


def test_shards_take_no_root(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"0.json": "{}"})
    with pytest.raises(SourceError, match="`root` is for JSONL"):
        open_source(str(path), "mmc4", root=str(tmp_path))
