"""`flamingo eval` against a real server: everything from the command line to the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.eval_world import make_exam
from flamingo_server.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam().write(tmp_path_factory.mktemp("exam")).parent


def evaluated(url: str, data: Path, out: Path, *arguments: str) -> tuple[dict[str, Any], int]:
    given = ["--url", url, "--data", str(data), "--out", str(out), "--concurrency", "4"]
    with pytest.raises(SystemExit) as ended:
        main(["eval", *arguments, *given])
    return json.loads((out / "results.json").read_text()), int(ended.value.code or 0)


def test_a_random_model_scores_as_chance_does(
    url: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["emoji-words-2way", "emoji-films", "emoji-rices", "digits-2way"]
    found, status = evaluated(url, data, tmp_path, *tasks, "--num", "20", "--shots", "1")
    assert status == 0 and (tmp_path / "results.png").stat().st_size > 10_000
    rows = {(row["task"], row["group"]): row for row in found["rows"]}
    words = rows["emoji-words-2way", ""]
    assert words["num"] == 20 and words["interval"][0] <= 0.5 <= words["interval"][1]
    assert words["chance"] == 0.5 and 0 <= words["features"] <= 1
    assert rows["emoji-films", "known"]["value"] == 0.0
    assert {d["num"] for d in found["differences"]} >= {20} and not found["problems"]
    assert found["run"]["server"]["model"] == "tiny"
    printed = capsys.readouterr().out
    assert "emoji-words-2way" in printed and "RICES − captions, random" in printed


def test_a_run_repeats(url: str, data: Path, tmp_path: Path) -> None:
    runs = [
        evaluated(url, data, tmp_path / name, "emoji-words-5way", "--num", "10", "--shots", "1")
        for name in ("a", "b")
    ]
    assert runs[0][0]["rows"] == runs[1][0]["rows"]


def test_a_task_without_its_files_says_so_and_the_others_go_on(
    url: str, data: Path, tmp_path: Path
) -> None:
    found, status = evaluated(url, data, tmp_path, "coco", "emoji-films", "--num", "3")
    assert status == 1 and "dataset_coco.json" in found["problems"]["coco"]
    assert {row["task"] for row in found["rows"]} == {"emoji-films"}


def test_prompts_that_are_too_long_are_reported(url: str, data: Path, tmp_path: Path) -> None:
    found, status = evaluated(url, data, tmp_path, "digits-5way", "--num", "3", "--shots", "1,8")
    assert [row["shots"] for row in found["rows"]] == [1]
    assert status == 1 and "together may have 256" in found["problems"]["digits-5way"]
