"""A real server on a real port, in a thread of this process: `serve(**settings)` gives its URL."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from flamingo_server.config import Settings
from flamingo_server.run import Server, build_server
from tiny import save_tiny

torch.set_num_threads(1)

QUIET = {"device": "cpu", "port": 0, "threads": 1, "log_level": "error", "drain_timeout_s": 5.0}
Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, 256 tokens of context and a token per byte."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def serve(tiny_folder: Path) -> Serve:
    """`with serve(max_queued=1) as url:`; the tiny model, unless `model` names another."""

    @contextmanager
    def serving(model: Path | str = tiny_folder, **settings: Any) -> Iterator[str]:
        server = build_server(Settings(**{**QUIET, "model": str(model), **settings}))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port_of(server)}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()

    return serving


def port_of(server: Server) -> int:
    """Once the model is ready."""
    until = time.monotonic() + 60
    while not server.started or server.service.status == "loading":
        assert time.monotonic() < until, "the server does not start"
        time.sleep(0.01)
    assert server.service.status == "ready", server.service.load_error
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@pytest.fixture(scope="session")
def url(serve: Serve) -> Iterator[str]:
    """The server that most tests share."""
    with serve() as base_url:
        yield base_url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client
