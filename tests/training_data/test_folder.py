"""Folders of pictures with texts beside them, or by class."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamingo_model.training.data.document import BadRecord
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.source import open_source
from training_data.made import documents, picture, records, shown, write


def test_a_picture_is_paired_with_the_text_of_its_name(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / f"sub/{number}.PNG", picture(number))
        write(tmp_path / f"sub/{number}.txt", f"\ufeff number {number}\n")
    write(tmp_path / "README.txt", "what this is")
    write(tmp_path / ".hidden/3.png", picture(3))
    found = documents(open_source(str(tmp_path)))
    assert [(document.place, *shown(document)) for document in found] == [
        ("sub/1.PNG", picture(1), "number 1"),
        ("sub/2.PNG", picture(2), "number 2"),
    ]


def test_without_texts_the_folder_says_what_is_on_the_picture(tmp_path: Path) -> None:
    write(tmp_path / "train/golden_retriever/a.jpg", picture(1))
    write(tmp_path / "train/cat/a.mp4", b"a film")
    cat, dog = documents(open_source(str(tmp_path), prompt="Output:"))
    assert shown(cat) == [b"a film", ("Output:", False), " cat"]
    assert shown(dog) == [picture(1), ("Output:", False), " golden retriever"]


def test_what_has_no_partner_is_a_bad_record(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture(1))
    write(tmp_path / "a.txt", "good")
    write(tmp_path / "alone.png", picture(2))
    write(tmp_path / "lonely.txt", "text")
    write(tmp_path / "empty.png", picture(3))
    write(tmp_path / "empty.txt", " \n")
    write(tmp_path / "latin.png", picture(4))
    write(tmp_path / "latin.txt", b"\xe9t\xe9")
    reasons = {}
    for record in records(open_source(str(tmp_path))):
        try:
            record.read()
        except BadRecord as error:
            reasons[record.place] = str(error)
    assert reasons == {
        "alone.png": "alone.png: no .txt of the same name beside it, nor a folder that names it",
        "lonely.txt": "lonely.txt: no picture or film beside the text",
        "empty.png": "empty.png: empty text",
        "latin.png": "latin.png: latin.txt is not UTF-8",
    }


def test_a_folder_of_bare_pictures_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture(1))
    with pytest.raises(SourceError, match="no pictures with texts beside them"):
        open_source(str(tmp_path))


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    for name in "dbca":
        write(tmp_path / f"class/{name}.png", picture(ord(name)))
    source = open_source(str(tmp_path))
    assert [source.record(at).place[-5] for at in range(4)] == list("abcd")  # type: ignore[attr-defined]
