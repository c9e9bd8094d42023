"""A web server for shards, on this machine, that can break off, refuse and forget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Host:
    """`breaks` are how many bytes to send before breaking off, one for each coming request;
    `statuses` are what to answer instead, one for each."""

    files: dict[str, bytes]
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    with_ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def hosting(host: Host) -> Iterator[Host]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            answer(self, host)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        host.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield host
        finally:
            server.shutdown()


def answer(handler: BaseHTTPRequestHandler, host: Host) -> None:
    path, wanted = handler.path.partition("?")[0].lstrip("/"), handler.headers.get("Range")
    host.asked.append((path, wanted))
    status = host.statuses.pop(0) if host.statuses else 200 if path in host.files else 404
    if status != 200:
        handler.send_error(status)
        return
    data, start = host.files[path], 0
    if wanted and host.with_ranges:
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) - start))
    handler.end_headers()
    handler.wfile.write(data[start : start + host.breaks.pop(0)] if host.breaks else data[start:])
