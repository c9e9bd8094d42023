"""Clients that leave, stall or come at a bad time, and servers that stop."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.calls import ask, image, metric, png, read_events, text
from flamingo_server.app import create_app
from flamingo_server.config import Settings
from flamingo_server.run import Server, build_server
from serving import wait_until_ready

BEAMS = {"prompt": [text("go on")], "num_beams": 8, "n": 8, "max_tokens": 240, "min_tokens": 240}
WORDS: dict[str, Any] = {
    "prompt": [text("go on")],
    "candidates": [f"{n:05} " * 8 for n in range(5000)],
}
PICTURE = {"image": image(png())["image"]}
LONG = {"prompt": [text("go on")], "n": 8, "max_tokens": 240, "min_tokens": 240}
MEGABYTES = {**LONG, "n": 16, "logprobs": 20, "stream": True}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def send(url: str, body: dict[str, Any], route: str = "generate") -> socket.socket:
    """Asks, and reads nothing: what it is sent soon stays with the server."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST /v1/{route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    return connection


def is_idle(client: httpx.Client) -> bool:
    names = ("running", "waiting", "blocks_used")
    return not any(metric(client, f"flamingo_{name}") for name in names)


def test_leaving_a_stream_frees_the_engine(client: httpx.Client) -> None:
    before = metric(client, "flamingo_steps")
    with client.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as response:
        events = read_events(response.iter_lines())
        assert [next(events)[0] for _ in range(3)] == ["start", "token", "token"]
        assert metric(client, "flamingo_running") == 1
    wait_for(lambda: is_idle(client))
    assert metric(client, "flamingo_steps") - before < 200


def test_leaving_before_a_whole_answer_frees_the_engine(client: httpx.Client, url: str) -> None:
    before = metric(client, "flamingo_steps")
    with send(url, LONG):
        wait_for(lambda: metric(client, "flamingo_running") == 1)
    wait_for(lambda: is_idle(client))
    assert metric(client, "flamingo_steps") - before < 200


def test_leaving_between_beams_frees_the_engine(client: httpx.Client) -> None:
    before = metric(client, "flamingo_steps")
    body = {**BEAMS, "stream": True, "stream_hypotheses": True}
    with client.stream("POST", "/v1/generate", json=body) as response:
        events = read_events(response.iter_lines())
        names = [next(events)[0] for _ in range(8)]
        assert names[0] == "start" and "hypothesis" in names
        assert metric(client, "flamingo_blocks_used") > 0
    wait_for(lambda: is_idle(client))
    assert metric(client, "flamingo_steps") - before < 200


@pytest.mark.parametrize("ensemble", [1, 6])
def test_leaving_a_classification_frees_the_engine(
    client: httpx.Client, url: str, ensemble: int
) -> None:
    body = WORDS
    if ensemble > 1:
        shots = [{"caption": word} for word in ("a", "b", "c", "d")]
        task = {"task": "caption", "examples": shots, "zero_shot": True, "ensemble": ensemble}
        body = {**task, "query": PICTURE, "candidates": WORDS["candidates"][:700]}
    scored = metric(client, "flamingo_candidates_scored_total")
    with send(url, body, "classify"):
        wait_for(lambda: metric(client, "flamingo_running") == ensemble)
    wait_for(lambda: is_idle(client))
    assert metric(client, "flamingo_candidates_scored_total") == scored


def test_a_full_queue_refuses_before_it_looks_at_pictures(serve: Any) -> None:
    with serve(max_queued=3) as url, httpx.Client(base_url=url, trust_env=False) as client:
        with client.stream("POST", "/v1/generate", json={**LONG, "stream": True}):
            bad = {"image": {"data": "no picture"}}
            body = {"task": "classify", "query": bad, "candidates": ["a"]}
            shots = [{**bad, "label": str(n)} for n in range(3)]
            asked = {**body, "examples": shots, "ensemble": 3}
            response = client.post("/v1/classify", json=asked)
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert client.post("/v1/classify", json={**asked, "ensemble": 2}).status_code == 400
        wait_for(lambda: is_idle(client))


def test_a_client_that_never_reads_holds_nobody_up(client: httpx.Client, url: str) -> None:
    with send(url, MEGABYTES):
        wait_for(lambda: metric(client, "flamingo_running") == 1)
        assert ask(client, text("me too"), max_tokens=3)["usage"]["completion_tokens"] > 0
        wait_for(lambda: is_idle(client))  # it ends, though megabytes of it were never read
    assert ask(client, text("and now?"), max_tokens=3)["choices"]


def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve: Any) -> None:
    with serve(max_queued=1) as url, httpx.Client(base_url=url, trust_env=False) as client:
        with client.stream("POST", "/v1/generate", json={**LONG, "stream": True}):
            response = client.post("/v1/generate", json=LONG)
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "queue_full_error"
        wait_for(lambda: is_idle(client))
        assert client.post("/v1/generate", json={**LONG, "n": 1}).status_code == 200


def test_stopping_a_server_ends_a_stream_that_is_never_read(serve: Any) -> None:
    with serve(drain_timeout_s=1) as url:
        deaf = send(url, MEGABYTES)
        assert deaf.recv(12) == b"HTTP/1.1 200"
    deaf.close()


def test_sigterm_lets_a_stream_end_and_the_process_exits_with_0(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "flamingo_server.cli", "serve", str(tiny_folder)]
    flags = ["--port=0", "--threads=1", "--device=cpu"]
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        url = wait_until_ready(process) + "/v1/generate"
        with httpx.stream("POST", url, json={**LONG, "stream": True}, trust_env=False) as response:
            events = read_events(response.iter_lines())
            assert next(events)[0] == "start"
            process.send_signal(signal.SIGTERM)
            names = [name for name, _ in events]
        assert names.count("done") == 8 and names[-1] == "end"
        assert process.wait(timeout=15) == 0


def run_in_a_thread(server: Server) -> threading.Thread:
    thread = threading.Thread(target=server.run)
    thread.start()
    return thread


def test_a_model_that_cannot_be_loaded_stops_the_server(tmp_path: Path) -> None:
    server = build_server(Settings(model=str(tmp_path), port=0, log_level="error"))
    run_in_a_thread(server).join(timeout=10)
    assert server.has_failed and "config.json" in str(server.service.load_error)


def test_a_server_whose_engine_has_died_stops_too(tiny_folder: Path) -> None:
    settings = Settings(model=str(tiny_folder), port=0, device="cpu", log_level="error")
    server = build_server(settings)
    thread = run_in_a_thread(server)
    wait_for(lambda: server.service.status == "ready")
    server.service.engine.inbox.put(("stop", None))
    thread.join(timeout=10)
    assert server.has_failed


def test_until_the_model_is_loaded_only_health_is_well() -> None:
    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(create_app(Settings()))  # nobody starts its loading
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            health, ready = await client.get("/healthz"), await client.get("/readyz")
            asked = await client.post("/v1/generate", json=LONG)
            metrics = await client.get("/metrics")
        assert ready.json() == {"status": "loading"} and asked.headers["retry-after"]
        return [r.status_code for r in (health, ready, asked, metrics)]

    assert asyncio.run(statuses()) == [200, 503, 503, 200]
