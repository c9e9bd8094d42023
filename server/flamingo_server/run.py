"""Runs the app under uvicorn, and stops it well: SIGTERM drains, a failed load exits non-zero."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys

import uvicorn

from .app import create_app
from .config import Settings
from .service import Service


class Server(uvicorn.Server):
    """uvicorn that says when the model is ready, and gives up when it cannot be loaded."""

    service: Service
    has_failed = False

    async def main_loop(self) -> None:
        watching = asyncio.create_task(self.watch())
        await super().main_loop()
        watching.cancel()

    async def watch(self) -> None:
        """Says once that all is ready; stops a server that can answer no more."""
        while self.service.status == "loading":
            await asyncio.sleep(0.02)
        if self.service.status == "ready":
            leave_to_live()
            self.announce()
        while self.service.status != "failed":
            await asyncio.sleep(0.5)
        self.has_failed = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what time is up for too: a closed connection waits for a client that never reads."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def announce(self) -> None:
        port = self.servers[0].sockets[0].getsockname()[1]
        print(
            f"{self.service.model_name} is ready on http://{self.config.host}:{port} "
            f"(API page: /docs)",
            flush=True,
        )


def leave_to_live() -> None:
    """What start-up has made stays: searching it for garbage takes a fifth of a second a time."""
    gc.freeze()
    gc.enable()


def build_server(settings: Settings) -> Server:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        server_header=False,
    )
    server = Server(config)
    server.service = app.state.service
    return server


def run_server(settings: Settings) -> int:
    """Serves until stopped; the exit status is 0 unless the model or the engine failed."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it has stopped
    server = build_server(settings)
    server.run()
    if server.has_failed:
        error = server.service.load_error or "the engine stopped: see the log"
        print(f"flamingo serve: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return int(server.has_failed)
