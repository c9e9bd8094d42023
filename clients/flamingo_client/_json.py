"""Reads JSON objects field by field. Fields nobody asks for are never looked at."""

import base64
import binascii
import json
import struct
from typing import TypeAlias, TypeVar

from flamingo_client.errors import AnswerError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
T = TypeVar("T")


class Fields:
    """One JSON object of an answer. Every reader raises `AnswerError` naming the wrong field."""

    def __init__(self, data: dict[str, Json]) -> None:
        self._data = data

    def text(self, name: str) -> str:
        return _expect(self._data.get(name), str, name)

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._data.get(name)
        return _expect(default if value is None else value, int, name)

    def number(self, name: str) -> float:
        """The number, 0.0 if absent or null."""
        return self.maybe_number(name) or 0.0

    def maybe_number(self, name: str) -> float | None:
        value = self._data.get(name)
        return None if value is None else float(_expect(value, (int, float), name))

    def wholes(self, name: str) -> tuple[int, ...]:
        return tuple(_expect(item, int, name) for item in self._list(name))

    def floats(self, name: str) -> tuple[float, ...]:
        """Numbers from base64 of little-endian 32-bit floats."""
        try:
            data = base64.b64decode(self.text(name), validate=True)
            return tuple(value for (value,) in struct.iter_unpack("<f", data))
        except (binascii.Error, struct.error) as error:
            raise AnswerError(f"{name!r} in the answer holds no numbers: {error}") from error

    def child(self, name: str) -> "Fields":
        """The object under `name`; an empty one if absent."""
        return Fields(_expect(self._data.get(name) or {}, dict, name))

    def children(self, name: str) -> "list[Fields]":
        return [Fields(_expect(item, dict, name)) for item in self._list(name)]

    def json(self, name: str) -> Json:
        return self._data.get(name)

    def _list(self, name: str) -> list[Json]:
        return _expect(self._data.get(name) or [], list, name)


def object_from(data: bytes | str) -> dict[str, Json]:
    """The JSON object that `data` holds. Raises `AnswerError` if it holds anything else."""
    try:
        return _expect(json.loads(data), dict, "answer")
    except ValueError as error:
        raise AnswerError(f"the answer is not JSON: {data[:100]!r}") from error


def _expect(value: object, kind: type[T] | tuple[type[T], ...], name: str) -> T:
    if isinstance(value, kind):
        return value
    raise AnswerError(f"{name!r} in the answer has a wrong type: {value!r:.100}")
