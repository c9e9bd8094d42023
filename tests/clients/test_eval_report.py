"""The command: its table, JSON and plot, and how it ends."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from flamingo_eval import cli, plot, report
from flamingo_eval.benchmark import Difference, Result, Row

MORE = Row(*("coco", "", "CIDEr", 100.0, 8, False, "rices"), *(0.95, 0.0, (0.9, 1.0), (0.95,), 9))
NEAREST = Difference("a", "b", -0.01, (-0.03, 0.01), 500)
WORDS = Row(
    *("emoji-words-5way", "", "top-1 by likelihood", 1.0, 1, True, "random"),
    *(0.9345, None, (0.91, 0.95), (0.9345,), 500),
    failed={"full (HTTP 429)": 2},
    chance=0.2,
    pixels=0.31,
    features=0.944,
    less_features=NEAREST,
)
COCO = Row(
    *("coco", "", "CIDEr", 100.0, 4, False, "rices"),
    *(0.932, 0.004, (0.92, 0.94), (0.93, 0.934), 1000),
)
RESULTS = [
    Result("emoji-words-5way", [WORDS], [NEAREST]),
    Result("coco", [COCO], []),
    Result("vqav2", [], [], "vqav2 wants files"),
]


def printed(results: list[Result]) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    report.print_results(results, console)
    return console.export_text()


def test_a_row_shows_score_deviation_interval_and_baselines() -> None:
    lines = [line for line in printed(RESULTS).splitlines() if "│" in line]
    words, coco = lines[-2:]
    for cell in ("1/class", "0.934", "[0.910, 0.950]", "500", "0.200", "0.310", "0.944"):
        assert cell in words
    assert "-0.010 [-0.030, +0.010]" in words
    for cell in ("93.2", "0.4", "[92.0, 94.0]", "93.1", "89.0", "93.0"):  # and three published
        assert cell in coco


def test_failures_problems_and_differences_are_said() -> None:
    said = printed(RESULTS)
    assert "emoji-words-5way, 1 shots: 2 got no answer: full (HTTP 429)" in said
    assert "vqav2 wants files" in said and "a − b: -0.010" in said


def test_the_json_holds_everything(tmp_path: Path) -> None:
    report.write_json(tmp_path / "a.json", {"server": {"model": "m"}}, RESULTS)
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["task"] for row in found["rows"]] == ["emoji-words-5way", "coco"]
    assert found["rows"][0]["less_features"]["interval"] == [-0.03, 0.01]
    assert found["problems"] == {"vqav2": "vqav2 wants files"} and found["run"]["server"]


@pytest.mark.parametrize("results", [RESULTS, [Result("coco", [COCO, MORE], [])], []])
def test_the_plot_is_a_picture(results: list[Result], tmp_path: Path) -> None:
    plot.plot(tmp_path / "a.png", results, "m")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 300
        assert len(picture.convert("RGB").getcolors(100_000) or []) > (30 if results else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cocoa"], "no task 'cocoa'"),
        (["coco", "--ensemble", "6", "--prompts", "paper"], "--ensemble needs --prompts family"),
        (["coco", "--url", "http://127.0.0.1:9"], "no answer from the server"),
    ],
)
def test_what_cannot_be_done_is_the_last_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"flamingo eval: .*{message}"):
        cli.main(arguments)


@pytest.mark.parametrize("wrong", ["--shots=-1", "--num=0", "--select=best", "--prompts=mine"])
def test_options_are_checked(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["coco", wrong])
    assert ended.value.code == 2
