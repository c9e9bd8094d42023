"""Time to the first token through HTTP on the shipped checkpoint, beside its parts.

Starts a server of its own. Warm: the same prompt again, its pictures known. Cold: fresh pictures
every time. The limit it is held against is the engine's own time for the same request.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from flamingo_client import FlamingoClient, Token, image, text
from PIL import Image
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
    """Milliseconds until the first text event is in the client's hands."""
    started = time.perf_counter()
    for event in client.stream(parts, max_tokens=4, min_tokens=2):
        if isinstance(event, Token):
            return (time.perf_counter() - started) * 1000
    raise RuntimeError("no token came")


def measure(client: FlamingoClient, make: Callable[[], list]) -> Iterator[float]:
    for _ in range(RUNS):
        yield time_to_first_token(client, make())


def inside(client: FlamingoClient, make: Callable[[], list]) -> Iterator[float]:
    """What the server itself counts: media and engine, without HTTP."""
    for _ in range(RUNS):
        timings = client.generate(make(), max_tokens=1).timings
        yield timings.media_ms + timings.ttft_ms


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'shots':>5} {'pictures':>8} {'first token ms':>15} {'p90':>7} {'inside ms':>10} {'ratio':>6}")
    with serve() as url, FlamingoClient(base_url=url) as client:
        for shots in (0, 2, 8):
            fixed = prompt(rng, shots)
            for name, make in (("warm", lambda: fixed), ("cold", lambda: prompt(rng, shots))):
                client.generate(make(), max_tokens=1)
                times, within = sorted(measure(client, make)), list(inside(client, make))
                middle, limit = statistics.median(times), statistics.median(within)
                p90 = times[int(0.9 * RUNS)]
                row = f"{middle:15.1f} {p90:7.1f} {limit:10.1f} {middle / limit:6.2f}"
                print(f"{shots:5} {name:>8} {row}")


if __name__ == "__main__":
    main()
