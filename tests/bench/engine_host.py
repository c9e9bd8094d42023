"""A server whose engine can also be asked without HTTP: a child process of over_http.py.

Prints where it listens; then, for every request body on a line of stdin, when its tokens came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable

from uvicorn.loops.auto import auto_loop_factory

from bench.ours import intervals
from flamingo_server.config import Settings
from flamingo_server.engine.request import Ended, Event, Text
from flamingo_server.protocol.generate import GenerateRequest
from flamingo_server.routes.generate import submit
from flamingo_server.run import build_server
from flamingo_server.service import Service
from flamingo_server.sse import EventQueue


class Receiver(EventQueue):
    """Takes the engine's events where they arise, without a queue."""

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self.deliver = deliver  # type: ignore[method-assign]


async def main(threads: int) -> None:
    server = build_server(Settings(port=0, threads=threads, device="cpu", log_level="error"))
    serving = asyncio.create_task(server.serve())
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await ask(server.service, json.loads(line))), flush=True)
    server.should_exit = True
    await serving


async def ask(service: Service, values: dict) -> tuple[float, float]:
    """The road of `POST /v1/generate` between its body and its bytes: seconds until the first
    token, and per token from there."""
    body = GenerateRequest.model_validate(values)
    loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
    came: list[tuple[float, int]] = []

    def deliver(event: Event) -> None:
        if isinstance(event, Text):
            came.append((time.perf_counter(), len(event.token_ids)))
        elif isinstance(event, Ended | Exception):
            loop.call_soon_threadsafe(has_ended.set)

    started = time.perf_counter()
    await submit("inside", body, None, service, Receiver(deliver))
    await has_ended.wait()
    return intervals(started, came)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # as `flamingo serve` has it
        runner.run(main(int(sys.argv[1])))
