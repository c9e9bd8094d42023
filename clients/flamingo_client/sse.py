"""Decodes server-sent events. Knows no socket and no JSON: bytes or lines in, events out.

httpx's own `iter_lines` is not used: it also splits at U+2028 and its like, which may stand
unescaped inside JSON.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; `event` is "message" when the server named none."""

    event: str
    data: str


class LineSplitter:
    """Cuts a stream of bytes into lines that end in LF, CRLF or CR, wherever the chunks break."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_after_cr = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that `chunk` completes, without their ends."""
        if not chunk:
            return []
        # A CR ends its line at once; the LF of a CRLF cut in two must not end another.
        if self._is_after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._is_after_cr = chunk.endswith(b"\r")
        *lines, self._rest = LINE_END.split(self._rest + chunk)
        return [line.decode("utf-8", "replace") for line in lines]


class SSEDecoder:
    """Turns lines into events. An event that no blank line ends is never delivered."""

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self._is_first = True
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that `chunk` completes."""
        for line in self._lines.feed(chunk):
            if (event := self.decode(line)) is not None:
                yield event

    def decode(self, line: str) -> ServerSentEvent | None:
        """The event that this line, given without its end, completes; None if it completes none."""
        if self._is_first:
            self._is_first = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        # A line that begins with a colon is a comment: its field has an empty name.
        name, _, value = line.partition(":")
        self._set(name, value.removeprefix(" "))
        return None

    def _set(self, name: str, value: str) -> None:
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return ServerSentEvent(event, "\n".join(data)) if data else None
