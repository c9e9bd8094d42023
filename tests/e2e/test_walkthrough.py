"""From a folder of pictures to a served adapter, through the commands that a user would type.

60 handwritten digits in folders by class → `flamingo data check` → `flamingo train` → `flamingo
serve --adapter`; 50 other digits are asked about with the adapter and without.
The base model has never seen a digit. `-s` shows the figures.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flamingo_client import FlamingoClient, image
from flamingo_eval.tasks.words import handwritten
from serving import serve

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEARNED, ASKED = 6, 5  # of each digit
PROMPT = "This is a"  # how `task: classify` asks the embedded model

CONFIG = f"""
[model]
base = "embedded"

[train]
what = ["resampler", "cross_attention", "vision"]
steps = 45
rate = 1e-3
warm_up = 5
schedule = "cosine"

[[datasets]]
path = "pictures"
batch = 20
options = {{ prompt = "{PROMPT}" }}

[output]
folder = "runs/digits"
"""


@dataclass(frozen=True)
class Digit:
    word: str
    png: bytes


@dataclass(frozen=True)
class Answer:
    """To one picture: the likeliest of the ten words and how likely, and what was written."""

    chosen: str
    probability: float
    written: str


@dataclass(frozen=True)
class Walk:
    """What `flamingo data check` and `train` left, and what was answered to `asked`.

    `before` is of a server that knows no adapter, `beside` of one that has it, to requests that
    do not name it; `after` of those that do.
    """

    report: dict[str, object]
    folder: Path
    said: str
    asked: Sequence[Digit]
    before: Sequence[Answer]
    beside: Sequence[Answer]
    after: Sequence[Answer]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    folder = tmp_path_factory.mktemp("digits")
    learned, asked = draw_digits()
    write_pictures(folder / "pictures", learned)
    (folder / "digits.toml").write_text(CONFIG)

    report = json.loads(run(folder, "data", "check", "pictures", "--json"))
    started = time.monotonic()
    said = run(folder, "train", "digits.toml").splitlines()[-1]
    seconds = time.monotonic() - started
    with serve("embedded", threads=1) as url:
        before = ask(url, asked)
    with serve("embedded", threads=1, adapter=f"digits={folder / said}") as url:
        after, beside = ask(url, asked, "digits"), ask(url, asked[::5])
    print(
        f"\n{'':20}{'classify':>10}{'generate':>10}   of {len(asked)}; trained in {seconds:.0f} s"
    )
    for name, answers in (("before", before), ("with the adapter", after)):
        print(f"{name:20}" + "".join(f"{share:10.2f}" for share in shares(answers, asked)))
    return Walk(report, folder, said, asked, before, beside, after)


def draw_digits() -> tuple[list[Digit], list[Digit]]:
    """Those to learn from, and others; scikit-learn's digits, dark on light, 64 × 64."""
    dice, learned, asked = random.Random(0), list[Digit](), list[Digit]()
    for number, word in enumerate(WORDS):
        some = dice.sample(handwritten().pictures[str(number)], LEARNED + ASKED)
        digits = [Digit(word, media.read()) for media in some]
        learned += digits[:LEARNED]
        asked += digits[LEARNED:]
    return learned, asked


def write_pictures(root: Path, digits: Sequence[Digit]) -> None:
    for number, digit in enumerate(digits):
        (root / digit.word).mkdir(parents=True, exist_ok=True)
        (root / digit.word / f"{number}.png").write_bytes(digit.png)


def run(folder: Path, *arguments: str) -> str:
    """`flamingo ARGUMENTS` within the folder, which has to exit with 0."""
    command = [sys.executable, "-m", "flamingo_server.cli", *arguments]
    # More threads wait for one another where tests run beside each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(url: str, digits: Sequence[Digit], adapter: str | None = None) -> list[Answer]:
    with FlamingoClient(base_url=url, timeout=120) as client:
        return [ask_one(client, digit, adapter) for digit in digits]


def ask_one(client: FlamingoClient, digit: Digit, adapter: str | None) -> Answer:
    query = {"image": image(digit.png)["image"]}
    found = client.classify(task="classify", query=query, candidates=WORDS, adapter=adapter)
    written = client.generate(
        task="classify", query=query, adapter=adapter, max_tokens=4, temperature=0
    )
    best = found.candidates[0]
    return Answer(best.text, best.probability, written.text)


def shares(answers: Sequence[Answer], digits: Sequence[Digit]) -> tuple[float, float]:
    """Right by choice of ten, and right in free words."""
    pairs = list(zip(answers, digits, strict=True))
    chosen = sum(answer.chosen == digit.word for answer, digit in pairs)
    written = sum(answer.written.strip(" .") == digit.word for answer, digit in pairs)
    return chosen / len(pairs), written / len(pairs)


def test_the_check_finds_sixty_sound_pictures(walk: Walk) -> None:
    assert walk.report["format"] == "folder"
    assert walk.report["documents"] == walk.report["pictures"] == 60
    assert walk.report["bad"] == 0


def test_training_leaves_an_adapter_and_its_curves(walk: Walk) -> None:
    place = walk.folder / "runs" / "digits"
    assert walk.folder / walk.said == place / "adapter.safetensors"
    log = (place / "log.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in log.splitlines()]
    assert len(losses) == 45 and losses[-1] < 0.25 * losses[0]
    assert (place / "curves.png").stat().st_size > 10_000


def test_the_adapter_reads_digits_that_it_has_not_seen(walk: Walk) -> None:
    """Chance is 0.1; the base names none of its own accord."""
    assert len(walk.asked) == 50
    before, after = shares(walk.before, walk.asked), shares(walk.after, walk.asked)
    assert max(before) <= 0.25
    assert min(after) >= 0.4


def test_beside_an_adapter_the_base_answers_as_without(walk: Walk) -> None:
    for beside, before in zip(walk.beside, walk.before[::5], strict=True):
        assert (beside.chosen, beside.written) == (before.chosen, before.written)
        assert beside.probability == pytest.approx(before.probability, abs=1e-4)
