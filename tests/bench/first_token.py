"""Time to the first token through HTTP on the shipped checkpoint, beside its parts.

Starts a server of its own. Warm: the same prompt again, its pictures known. Cold: fresh pictures
every time. The limit it is held against is the engine's own time for the same request.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from flamingo_client import FlamingoClient, Token, image, text
from serving import serve

RUNS = 30


def picture(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def prompt(rng: np.random.Generator, shots: int) -> list:
    parts = []
    for shot in range(shots):
        parts += [image(picture(rng)), text(f"This is a dax{shot}.<|endofchunk|>", True)]
    return [*parts, image(picture(rng)), text("This is a")]


def time_to_first_token(client: FlamingoClient, parts: list) -> float:
    """Milliseconds until the first text event is in the client's hands; reads on to the end."""
    started = time.perf_counter()
    came = [time.perf_counter() for e in client.stream(parts, max_tokens=4) if isinstance(e, Token)]
    return (came[0] - started) * 1000


def measure(client: FlamingoClient, make: Callable[[], list]) -> Iterator[float]:
    for _ in range(RUNS):
        yield time_to_first_token(client, make())


def inside(client: FlamingoClient, make: Callable[[], list]) -> Iterator[float]:
    """What the server itself counts: media and engine, without HTTP."""
    for _ in range(RUNS):
        timings = client.generate(make(), max_tokens=1).timings
        yield timings.media_ms + timings.ttft_ms


def row(client: FlamingoClient, shots: int, name: str, make: Callable[[], list]) -> str:
    client.generate(make(), max_tokens=1)
    times, within = sorted(measure(client, make)), list(inside(client, make))
    middle, limit = statistics.median(times), statistics.median(within)
    p90 = times[int(0.9 * RUNS)]
    return f"{shots:5} {name:>8} {middle:10.1f} {p90:7.1f} {limit:10.1f} {middle / limit:7.2f}"


def table() -> Iterator[str]:
    rng = np.random.default_rng(0)
    yield "shots pictures  median ms  p90 ms  inside ms   ratio"
    with serve() as url, FlamingoClient(base_url=url) as client:
        for shots in (0, 2, 8):
            fixed = prompt(rng, shots)
            yield row(client, shots, "warm", partial(list, fixed))
            yield row(client, shots, "cold", partial(prompt, rng, shots))


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
