"""Starts a real server for a test or a benchmark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve(model: str | Path = "embedded", **settings: object) -> Iterator[str]:
    """`flamingo serve MODEL` in a process of its own, on a free port; yields its URL."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    # Its own log level keeps what it writes below the pipe's size, so that it never blocks.
    command = [
        sys.executable,
        "-m",
        "flamingo_server.cli",
        "serve",
        str(model),
        "--port=0",
        "--log-level=error",
        *flags,
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLAMINGO_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        yield wait_until_ready(process)
    finally:
        process.terminate()
        process.wait(timeout=60)
        if process.stdout is not None:
            process.stdout.close()


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"is ready on (http://\S+)", line):
            return found.group(1)
    raise RuntimeError("the server did not start:\n" + "".join(said))
