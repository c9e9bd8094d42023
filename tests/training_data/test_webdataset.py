"""WebDataset shards on this machine."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flamingo_model.training.data.document import BadRecord, MediaPart
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.source import open_source
from training_data.made import documents, only, pairs, picture, records, shown, tar, write


def bad(path: Path, **options: object) -> dict[str, str]:
    found = {}
    for record in records(open_source(str(path), **options)):
        try:
            record.read()
        except BadRecord as error:
            found[record.place] = str(error).removeprefix(f"{record.place}: ")
    return found


def test_files_of_one_name_are_one_record(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", pairs([3, 4]))
    assert [(found.place, *shown(found)) for found in documents(open_source(str(path)))] == [
        ("s.tar:0003", picture(3), "number 3"),
        ("s.tar:0004", picture(4), "number 4"),
    ]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "png", "webp", "left.png"])
def test_pictures_have_many_suffixes(suffix: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {f"./a/0.{suffix}": b"x", "./a/0.txt": "t", "./a/0.cls": "1"})
    found = only(open_source(str(path)))
    assert shown(found) == [b"x", "t"] and found.place == "s.tar:a/0"


def test_a_film_is_a_film(tmp_path: Path) -> None:
    found = only(open_source(str(tar(tmp_path / "s.tar", {"0.mp4": b"x", "0.txt": "t"}))))
    assert found.parts[0] == MediaPart("video", b"x")


def test_json_is_a_row_of_a_table_where_there_is_no_text(tmp_path: Path) -> None:
    asked = json.dumps({"question": "Why?", "answers": ["so"], "caption": None})
    files = {"0.jpg": b"0", "0.json": '{"caption": "c"}', "1.jpg": b"1", "1.json": asked}
    first, second = documents(open_source(str(tar(tmp_path / "s.tar", files))))
    assert shown(first) == [b"0", "c"]
    assert shown(second) == [b"1", ("Question: Why? Answer:", False), " so"]


def test_text_wins_over_json_which_may_be_about_the_download(tmp_path: Path) -> None:
    files = {"0.jpg": b"0", "0.json": '{"status": "success"}', "0.txt": "t"}
    found = only(open_source(str(tar(tmp_path / "s.tar", files)), prompt="Output:"))
    assert shown(found) == [b"0", ("Output:", False), " t"]


def test_json_may_be_a_whole_document_with_its_pictures_in_the_shard(tmp_path: Path) -> None:
    parts = [{"image": "0.a.png"}, {"text": "t"}, {"image": "more/b.png"}]
    web = {
        "text_list": ["one", "two"],
        "image_info": [{"matched_text_index": 1, "image_base64": base64.b64encode(b"c").decode()}],
    }
    files: dict[str, bytes | str] = {
        "d/0.json": json.dumps({"parts": parts}),
        "d/0.a.png": b"a",
        "more/b.png": b"b",
        "d/1.json": json.dumps(web),
    }
    found = {document.place: shown(document) for document in _good(tmp_path, files)}
    assert found == {"s.tar:d/0": [b"a", "t", b"b"], "s.tar:d/1": ["one", b"c", "two"]}


def _good(tmp_path: Path, files: dict[str, bytes | str]) -> list:  # type: ignore[type-arg]
    source = open_source(str(tar(tmp_path / "s.tar", files)))
    return [record.read() for record in records(source) if record.place.startswith("s.tar:d/")]


def test_what_is_wrong_with_a_sample_is_said_of_that_sample(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        **pairs([0]),
        "1.txt": "t",
        "2.jpg": b"x",
        "3.jpg": b"x",
        "3.txt": " ",
        "4.jpg": b"x",
        "4.png": b"x",
        "4.txt": "t",
        "5.jpg": b"x",
        "5.json": "{",
        "6.jpg": b"x",
        "6.txt": b"\xff",
        "7.jpg": b"x",
        "7.json": "{}",
        "README.md": "nothing",
        "._0000.png": b"a Mac's",
    }
    found = bad(tar(tmp_path / "s.tar", files))
    assert {place.removeprefix("s.tar:"): reason[:20] for place, reason in found.items()} == {
        "1": "no picture",
        "2": "no .txt and no .json",
        "3": "empty text",
        "4": "two pictures or film",
        "5": "not JSON: Expecting ",
        "6": "the text is not UTF-",
        "7": "no .txt and no .json",
    }


def test_a_shard_cut_off_gives_what_is_whole_and_one_bad_record(tmp_path: Path) -> None:
    whole = tar(tmp_path / "w.tar", pairs(range(6))).read_bytes()
    path = write(tmp_path / "s.tar", whole[: 5 * 1024 + 700])
    assert len(records(open_source(str(path)))) > 1
    assert list(bad(path)) == ["s.tar"]
    assert "cut off or damaged" in bad(path)["s.tar"]


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\0" * 300, b"x" * 2048])
def test_a_file_that_is_no_tar_is_a_bad_record(data: bytes, tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", pairs([1]))
    write(tmp_path / "b.tar", data)
    found = bad(tmp_path)
    assert list(found) == ["b.tar"] and "damaged after 0 files" in found["b.tar"]


def test_a_shard_that_went_away_is_a_bad_record(tmp_path: Path) -> None:
    source = open_source(str(tar(tmp_path / "s.tar", pairs([1]))))
    (tmp_path / "s.tar").unlink()
    (record,) = records(source)
    with pytest.raises(BadRecord, match=r"^s\.tar: .*No such file"):
        record.read()


def test_shards_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in "ab":
        tar(tmp_path / folder / "0.tar", pairs([1]))
    found = documents(open_source(f"{tmp_path}/{{a,b}}/0.tar"))
    assert [document.place for document in found] == ["a/0.tar:0001", "b/0.tar:0001"]


def test_threads_may_read_the_records_of_a_shard_at_once(tmp_path: Path) -> None:
    found = records(open_source(str(tar(tmp_path / "s.tar", pairs(range(100))))))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda record: record.read(), found)) == [
            record.read() for record in found
        ]


def test_links_and_devices_in_a_shard_lead_nowhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for name, kind in (("0.jpg", tarfile.SYMTYPE), ("1.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            shard.addfile(info)
        for name in ("0.txt", "1.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            shard.addfile(info, io.BytesIO(b"t"))
    assert bad(tmp_path / "s.tar") == {"s.tar:0": "no picture", "s.tar:1": "no picture"}


def test_headers_that_lead_in_a_circle_end_the_shard(tmp_path: Path) -> None:
    data = bytearray(tar(tmp_path / "s.tar", pairs([0, 1])).read_bytes())
    header = memoryview(data)[2048:2560]  # of the third file: its size leads to the second again
    header[124:136] = b"\xff" * 8 + (-1536).to_bytes(4, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    header.release()
    found = bad(write(tmp_path / "s.tar", bytes(data)))
    assert "damaged after 3 files (headers lead backwards)" in found["s.tar"]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("s.tar.gz", {"format": "webdataset"}, "is no .tar"),
        ("s.tar", {"mix": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    name: str, options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(str(write(tmp_path / name, b"x")), **options)  # type: ignore[arg-type]
