"""Our end of the child process that runs OpenFlamingo; see openflamingo_peer.py."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.prompts import Prompt

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
BENCH = Path(__file__).parent


class PeerError(Exception):
    """It could not do what it was asked, or is not there."""


class Peer:
    """Answers one call at a time, and sleeps between them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.versions: dict[str, str] = {}

    def load(self, folder: Path, threads: int) -> None:
        """Also writes its network into `folder`, where our loader finds it."""
        self.versions = self.ask("load", folder=str(folder), threads=threads)["versions"]

    def generate(self, prompt: Prompt, max_tokens: int, num_beams: int = 1) -> dict[str, Any]:
        """`seconds`, `prompt_ids` and the `token_ids` after them."""
        return self.ask("generate", prompt=wire(prompt), max_tokens=max_tokens, num_beams=num_beams)

    def rank(self, prompt: Prompt, candidates: list[str]) -> dict[str, Any]:
        """`context_seconds`, `seconds` of the loop and the `scores`."""
        return self.ask("rank", prompt=wire(prompt), candidates=candidates)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"OpenFlamingo's process ended ({self.process.wait()}) at {do}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"OpenFlamingo: {answer['error']}")
        found: dict[str, Any] = answer["answer"]
        return found


def wire(prompt: Prompt) -> dict[str, Any]:
    pictures = [base64.b64encode(picture).decode() for picture in prompt.pictures]
    return {"text": prompt.text, "pictures": pictures}


@contextmanager
def start_peer(log: Path) -> Iterator[Peer]:
    """Raises PeerError where `make peers` has not been run. What it prints goes to `log`."""
    if not PYTHON.is_file():
        raise PeerError("OpenFlamingo is not installed: make peers")
    paths = os.pathsep.join(map(str, (BENCH / "peer_stubs", BENCH.parent)))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with log.open("w") as messages:
        process = subprocess.Popen(
            [PYTHON, BENCH / "openflamingo_peer.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env={**os.environ, **offline, "PYTHONPATH": paths},
        )
        try:
            yield Peer(process)
        finally:
            process.kill()
            process.wait()
