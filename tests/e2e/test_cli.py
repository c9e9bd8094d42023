"""`flamingo generate` and `flamingo classify` against a real server."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from e2e.calls import ask, image, png, text
from flamingo_server.cli import main

HELLO = ["--text", "hello", "--max-tokens", "6"]


def said(capsys: pytest.CaptureFixture[str], url: str, *arguments: str) -> str:
    main([*arguments, "--url", url])
    return capsys.readouterr().out


def test_beams_print_the_best_answer(
    client: httpx.Client, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = ask(client, text("hello"), max_tokens=6, num_beams=3)["choices"][0]["text"]
    found = said(capsys, url, "generate", *HELLO, "--num-beams", "3")
    assert found == answer + "\n" != said(capsys, url, "generate", *HELLO)


def rows(printed: str) -> list[tuple[float, float, str]]:
    lines = [line.split(maxsplit=2) for line in printed.splitlines()]
    return [(float(probability), float(total), word) for probability, total, word in lines]


def test_candidates_are_printed_likeliest_first(
    client: httpx.Client, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png("red"))
    words = ["a cat", "a dog"]
    by_task = {"task": "classify", "query": {"image": image(png("red"))["image"]}}
    by_parts = {"prompt": [image(png("red")), text("It is")]}
    for body, arguments in ((by_task, []), (by_parts, ["--text", "It is"])):
        answer = client.post("/v1/classify", json={**body, "candidates": words}).json()
        printed = said(
            capsys, url, "classify", "--image", str(file), *arguments, "--candidates", "a cat,a dog"
        )
        for row, candidate in zip(rows(printed), answer["candidates"], strict=True):
            assert row[0] == pytest.approx(candidate["probability"], abs=1e-4)
            assert row[1:] == (pytest.approx(candidate["sum"], abs=1e-3), candidate["text"])


def test_a_refusal_is_the_last_line(url: str) -> None:
    with pytest.raises(SystemExit, match="flamingo classify: .*candidates"):
        main(["classify", "--text", "a", "--candidates", "", "--url", url])
    with pytest.raises(SystemExit, match="flamingo generate: .*num_beams may be at most 16"):
        main(["generate", *HELLO, "--num-beams", "17", "--url", url])
    with pytest.raises(SystemExit, match="flamingo classify: give at least one"):
        main(["classify", "--candidates", "a", "--url", url])
