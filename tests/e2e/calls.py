"""What the tests say to a server, and how they read its answers."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from PIL import Image

Event = tuple[str, dict[str, Any]]


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "image": {"data": base64.b64encode(data).decode()}}


def video(data: bytes, **fields: Any) -> dict[str, Any]:
    return {"type": "video", "video": {"data": base64.b64encode(data).decode()}, **fields}


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A sound header and next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, checksum = len(data), zlib.crc32(kind + data)
        return struct.pack(">I", length) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(900))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif(num_frames: int) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (1, 1), i % 2 * 255) for i in range(num_frames)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=10)
    return buffer.getvalue()


def ask(client: httpx.Client, *parts: dict[str, Any], **rules: Any) -> dict[str, Any]:
    """The whole answer."""
    response = client.post("/v1/generate", json={"prompt": list(parts), **rules})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask_streamed(client: httpx.Client, *parts: dict[str, Any], **rules: Any) -> list[Event]:
    body = {"prompt": list(parts), "stream": True, **rules}
    with client.stream("POST", "/v1/generate", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(read_events(response.iter_lines()))


def read_events(lines: Iterable[str]) -> Iterable[Event]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def joined(events: list[Event]) -> list[dict[str, Any]]:
    """Streamed events as the `choices` of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for name, data in events:
        if name in ("token", "done"):
            empty = {"index": data["index"], "text": "", "token_ids": [], "logprobs": None}
            choice = choices.setdefault(data["index"], empty)
        if name == "token":
            choice["text"] += data["text"]
            choice["token_ids"] += data["token_ids"]
            if data["logprobs"] is not None:
                choice["logprobs"] = [*(choice["logprobs"] or []), *data["logprobs"]]
        elif name == "done":
            choice |= {"finish_reason": data["finish_reason"], "score": data["score"]}
    return [choices[index] for index in sorted(choices)]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """But for the last digits of scores, which a cached prompt may change."""
    for one, other in zip(found, expected, strict=True):
        assert {**one, "score": None} == {**other, "score": None}
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def metric(client: httpx.Client, name: str) -> float:
    """The sum over all labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)
