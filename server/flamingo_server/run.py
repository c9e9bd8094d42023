"""Runs the app under uvicorn, and stops it well: SIGTERM drains, a failed load exits non-zero."""

from __future__ import annotations

import asyncio
import logging

import uvicorn

from .app import create_app
from .config import Settings
from .service import Service


class Server(uvicorn.Server):
    """uvicorn that says when the model is ready, and gives up when it cannot be loaded."""

    service: Service

    async def main_loop(self) -> None:
        watching = asyncio.create_task(self.announce())
        await super().main_loop()
        watching.cancel()

    async def announce(self) -> None:
        while self.service.status == "loading" and self.service.load_error is None:
            await asyncio.sleep(0.02)
        if self.service.load_error is not None:
            self.should_exit = True
            return
        port = self.servers[0].sockets[0].getsockname()[1]
        print(
            f"{self.service.model_name} is ready on http://{self.config.host}:{port} "
            f"(API page: /docs)",
            flush=True,
        )


def run_server(settings: Settings) -> int:
    """Serves until stopped; the exit status is 0 unless the model could not be loaded."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
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
    server.run()
    if (error := server.service.load_error) is not None:
        print(f"flamingo serve: {error}", flush=True)
        return 1
    return 0
