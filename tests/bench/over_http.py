"""What HTTP and server-sent events add to the engine, and how the server feels under load."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Figure
from bench.ours import Ours, intervals, parts, problem_of
from bench.peer import ROOT
from bench.prompts import prompt
from bench.stage import Stage
from flamingo_client import FlamingoError, image, text
from serving import wait_until_ready

BENCH = Path(__file__).parent
Pair = tuple[float, float]  # seconds until the first token, and per token
NUM_TOKENS = 64
NUM_BUSY = 32  # clients
OVERHEAD = (
    ("HTTP + SSE overhead on time to first token", "≤ 3 ms"),
    ("HTTP + SSE overhead per token", "≤ 0.3 ms"),
)
WITH_CLIENT = ("the same in the hands of the Python client, first token", "per token")
HEALTH = f"p99 of /healthz, {NUM_BUSY} clients waiting"


def overhead(threads: int, rounds: int) -> Iterator[Figure]:
    """The shipped checkpoint: its steps are short enough to show what is added to them.

    The server's part ends where its bytes are read; what our Python client adds is told beside it.
    """
    try:
        bytes_read, client, inside = three_ways(threads, rounds)
    except (FlamingoError, RuntimeError, ValueError, OSError) as error:
        yield from (Figure(name, must, None, problem_of(error)) for name, must in OVERHEAD)
        return
    for number, (name, must) in enumerate(OVERHEAD):
        yield added(name, must, number, bytes_read, inside)
    for number, name in enumerate(WITH_CLIENT):
        yield added(name, "", number, client, inside)


def added(name: str, must: str, number: int, outside: list[Pair], inside: list[Pair]) -> Figure:
    outer, engine = ([took[number] * 1000 for took in side] for side in (outside, inside))
    middle, least = (f(outer) - f(engine) for f in (statistics.median, min))
    how = f"{statistics.median(outer):.2f} ms − {statistics.median(engine):.2f} ms, medians of"
    how = f"{how} {len(outer)}; of minima {least:.2f} ms; the same engine in the same process"
    return Figure(name, must, middle, how)


def three_ways(threads: int, rounds: int) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """As bytes, by our client, and without HTTP, in turn."""
    sent = [image(prompt(7000, 0).query.picture), text("This is a")]
    ways: tuple[list[Pair], list[Pair], list[Pair]] = [], [], []
    with start_host(threads) as (host, ours):
        connection = http.client.HTTPConnection(ours.url.removeprefix("http://"))
        ours.stream(sent, NUM_TOKENS)
        for _ in range(rounds):
            ways[2].append(ask(host, sent))
            ways[1].append(ours.stream(sent, NUM_TOKENS))
            ways[0].append(read_bytes(connection, sent))
        connection.close()
    return ways


def read_bytes(connection: http.client.HTTPConnection, sent: list) -> Pair:
    """When the events of tokens came, by a client that does not look into them."""
    body = json.dumps({**wanted(sent), "stream": True}).encode()
    started, came = time.perf_counter(), []
    connection.request("POST", "/v1/generate", body, {"Content-Type": "application/json"})
    with connection.getresponse() as response:
        while piece := response.read1(65536):
            if num := piece.count(b"event: token"):
                came.append((time.perf_counter(), num))
    return intervals(started, came)


def wanted(sent: list) -> dict[str, Any]:
    return {"prompt": sent, "max_tokens": NUM_TOKENS, "min_tokens": NUM_TOKENS}


@contextmanager
def start_host(threads: int) -> Iterator[tuple[subprocess.Popen[str], Ours]]:
    host = subprocess.Popen(
        [sys.executable, BENCH / "engine_host.py", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield host, Ours(wait_until_ready(host))
    finally:
        assert host.stdin is not None
        host.stdin.close()
        host.wait(timeout=60)


def ask(host: subprocess.Popen[str], sent: list) -> Pair:
    assert host.stdin is not None and host.stdout is not None
    host.stdin.write(json.dumps(wanted(sent)) + "\n")
    host.stdin.flush()
    first, step = json.loads(host.stdout.readline())
    return first, step


def health(stage: Stage) -> Iterator[Figure]:
    seconds = 5 if stage.is_quick else 15
    try:
        with saturated(stage.plain):
            taken = sorted(polled(stage.plain.url, seconds))
    except FlamingoError as error:
        yield Figure(HEALTH, "≤ 10 ms", None, problem_of(error))
        return
    p99, middle = (taken[int(share * len(taken))] * 1000 for share in (0.99, 0.5))
    how = f"{len(taken)} polls; median {middle:.2f} ms, most {taken[-1] * 1000:.1f} ms"
    yield Figure(HEALTH, "≤ 10 ms", p99, how)


@contextmanager
def saturated(ours: Ours) -> Iterator[None]:
    """Each of the clients asks again as soon as it has its answer."""
    base, stop = prompt(8000, 4), threading.Event()
    sent = [parts(base.asking(i)) for i in range(NUM_BUSY)]
    ours.answer(parts(base), 1)
    threads = [threading.Thread(target=keep_asking, args=(ours, one, stop)) for one in sent]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def keep_asking(ours: Ours, sent: list, stop: threading.Event) -> None:
    while not stop.is_set():
        ours.answer(sent, 16)


def polled(url: str, seconds: float) -> list[float]:
    address = url.removeprefix("http://")
    command = [sys.executable, BENCH / "healthz.py", address, str(seconds)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    taken: list[float] = json.loads(told.stdout)
    return taken
