"""`flamingo data check`: all that is wrong with a source, found before it is trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from films import film
from flamingo_model.training.data.check import Checking, check
from flamingo_model.training.data.problems import SourceError
from flamingo_model.training.data.report import Report, TooManyBad
from flamingo_model.training.data.source import open_source
from flamingo_server.cli import main
from training_data.hostile import fragile
from training_data.made import jsonl, noise, pairs, picture, tar, write

ONE = Checking(jobs=1)
TOKENIZER = Path(__file__).parents[1] / "golden/fm_opt/lm/tokenizer.json"


def checked(path: Path, how: Checking = ONE) -> Report:
    return check(open_source(str(path)), how)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 records: 8 are good (two of them the same), 4 bad."""
    folder = tmp_path_factory.mktemp("mixed")
    write(folder / "small.png", picture(1, (40, 300)))
    write(folder / "same.png", picture(1, (40, 300)))
    write(folder / "large.jpg", noise((600, 400)))
    write(folder / "film.mp4", film(num_frames=30, rate=10, size=(96, 64)))
    write(folder / "cut.jpg", noise((600, 400))[:5000])
    write(folder / "cut.mp4", film()[:900])
    small, large = {"image": "small.png"}, {"image": "large.jpg"}
    rows: list[list[dict[str, Any]]] = [
        [small, {"text": "two words"}],
        [{"image": "same.png"}, {"text": "two words"}],
        [small, {"text": "four words are here"}, large, {"text": "and five more of them"}],
        [{"video": "film.mp4"}, {"text": "runs"}],
        [{"text": "no picture"}],
        [{"text": "Q", "learned": False}, {"text": "A"}],
        [{"text": "QA"}],
        [{"text": "Q"}, {"text": "A"}],
        [{"image": "cut.jpg"}, {"text": "a"}],
        [small, {"video": "cut.mp4"}, {"text": "a"}],
        [{"image": "none.png"}, {"text": "a"}],
        [small],
    ]
    return jsonl(folder / "a.jsonl", [{"parts": parts} for parts in rows])


@pytest.fixture(scope="module")
def found(mixed: Path) -> Report:
    return checked(mixed, replace(ONE, tokenizer=str(TOKENIZER)))


def test_a_report_counts_what_is_good_and_names_what_is_bad(found: Report) -> None:
    assert (found.documents, found.bad, found.pictures, found.films) == (8, 4, 4, 1)
    assert found.film_seconds == 3.0
    assert (found.words, found.most_words, found.most_media) == (21, 9, 2)
    assert found.tokens and found.tokens > 21
    assert found.shorter_sides == {"up to 64": 4, "up to 512": 1}
    assert found.bad_records == [
        ("a.jsonl:9", "picture 1: it is cut off or damaged"),
        ("a.jsonl:10", "film 2: " + CUT_OFF),
        ("a.jsonl:11", "parts[0]: none.png is missing"),
        ("a.jsonl:12", "there is no text to learn"),
    ]


CUT_OFF = "The film is cut off or damaged: check that the whole file was sent, or save it again."


def test_repetitions_are_found_by_what_is_said_and_shown(found: Report) -> None:
    """Not by names; and words divided or learned in another way are another document."""
    (same,) = found.same_documents_examples
    assert found.same_documents == 1 and {*same} == {"a.jsonl:1", "a.jsonl:2"}
    assert found.same_media == 2 == len(found.same_media_examples)


def test_many_processes_find_what_one_finds_and_no_tokens_unasked(
    mixed: Path, found: Report
) -> None:
    assert checked(mixed, Checking(jobs=3)) == replace(found, tokens=None)


def test_a_wrong_tokenizer_is_refused_before_anything_is_read(mixed: Path) -> None:
    with pytest.raises(SourceError, match="is no tokenizer.json"):
        checked(mixed, replace(ONE, tokenizer=str(mixed)))


def test_a_limit_takes_a_sample_and_progress_counts_every_record(mixed: Path) -> None:
    steps = list[int]()
    found = check(open_source(str(mixed)), replace(ONE, limit=5), lambda: steps.append(1))
    assert found.records == 5 == len(steps)


def test_what_hangs_crashes_or_exhausts_a_decoder_costs_one_record(tmp_path: Path) -> None:
    texts = ["a", "hang", "b", "crash", "c", "exhaust", "d", "surprise", *map(str, range(40))]
    path = jsonl(tmp_path / "a.jsonl", [{"parts": [{"text": text}]} for text in texts])
    found = checked(path, Checking(jobs=2, timeout_s=3, examine=fragile))
    assert found.documents == len(texts) - 4
    reasons = dict(found.bad_records)
    assert list(reasons) == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:6", "a.jsonl:8"]
    assert "longer than 3 s" in reasons["a.jsonl:2"]
    assert "crash the decoder" in reasons["a.jsonl:4"]
    assert "too much memory" in reasons["a.jsonl:6"]
    assert "RuntimeError: nobody thought of this" in reasons["a.jsonl:8"]


def test_shards_are_checked_like_files(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", pairs(range(4))).read_bytes()
    write(tmp_path / "1.tar", whole[:6000])
    tar(tmp_path / "2.tar", {"0.jpg": b"no picture", "0.txt": "t"})
    found = checked(tmp_path)
    assert (found.documents, found.bad) == (7, 2)
    assert [place for place, _ in found.bad_records] == ["1.tar", "2.tar:0"]


def test_a_share_that_is_just_reached_is_allowed_and_no_records_are_not(found: Report) -> None:
    found.judge(4 / 12)
    with pytest.raises(TooManyBad, match=r"4 of 12 records are bad \(33.333%\); at most 33.000%"):
        found.judge(0.33)
    with pytest.raises(TooManyBad, match="0 of 0"):
        replace(found, documents=0, bad=0).judge(1.0)


def test_a_check_loads_no_torch() -> None:
    names = "check, report, source, media"
    program = f"import sys; from flamingo_model.training.data import {names}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert not {"torch", "transformers"} & {*loaded.stdout.decode().split()}


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["data", "check", "--jobs", "1", *arguments])
    return capsys.readouterr().out


def test_the_command_prints_what_it_found_and_fails_where_too_much_is_bad(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, str(mixed), "--max-bad-share", "0.34")
    assert "(interleaved)" in found and "a.jsonl:10: film 2: The film is cut off" in found
    assert found.index("a.jsonl:9:") < found.index("a.jsonl:10:")
    refused = "flamingo data check: 4 of 12 records are bad (33.333%); at most 1.000% may be"
    with pytest.raises(SystemExit) as caught:
        run(capsys, str(mixed))
    assert caught.value.code == refused


def test_json_is_the_same_for_programs(
    mixed: Path, found: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--json", "--max-bad-share", "1", "--tokenizer", str(TOKENIZER))
    printed = json.loads(run(capsys, str(mixed), *flags))
    assert printed == {"format": "interleaved", **json.loads(json.dumps(found.to_dict()))}


def test_options_of_a_format_are_given_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infos = [{"image_name": name, "matched_text_index": 0} for name in ("a.png", "gone.png")]
    path = jsonl(tmp_path / "lists/a.jsonl", [{"text_list": ["text"], "image_info": infos}])
    write(tmp_path / "a.png", picture())
    options = ("--option", f"root={tmp_path}", "--option", "drop_missing=true", "--json")
    assert json.loads(run(capsys, str(path), "--format", "mmc4", *options))["pictures"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none"], "none does not exist"),
        (["{}", "--format", "coco"], "unknown format 'coco'"),
        (["{}", "--option", "rot=1"], "has no option 'rot'"),
    ],
)
def test_what_cannot_be_checked_is_the_last_line(
    mixed: Path, arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit, match=f"flamingo data check: .*{reason}"):
        main(["data", "check", *(text.format(mixed) for text in arguments)])


@pytest.mark.parametrize(
    "arguments", [["--limit", "0"], ["--jobs", "x"], ["--option", "root"], ["--max-bad-share", "2"]]
)
def test_a_flag_out_of_range_is_refused_by_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", "a.jsonl", *arguments])
    assert f"argument {arguments[0]}" in capsys.readouterr().err
