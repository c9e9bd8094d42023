"""Encoded pictures and films as pixels: what a stranger's bytes may cost."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from films import film
from flamingo_model.film import FilmLimits, FilmOptions, read_frames
from flamingo_model.media import Transform, to_pixels
from flamingo_model.training.data.document import MediaPart
from flamingo_model.training.data.media import frames
from flamingo_model.training.data.problems import Problem
from training_data.made import noise, picture

SMALL = Transform("pad", 16, (0.5, 0.5, 0.5), (1, 1, 1))
OPTIONS = FilmOptions(fps=10, max_frames=4)


def of_picture(data: bytes, limits: FilmLimits = FilmLimits()) -> np.ndarray:  # noqa: B008
    return frames(MediaPart("image", data), SMALL, OPTIONS, limits)


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_is_one_frame_of_what_serving_would_see(format: str) -> None:
    data = noise((40, 30), format)
    with Image.open(io.BytesIO(data)) as opened:
        expected = to_pixels(opened, SMALL)
    found = of_picture(data)
    assert found.shape == (1, 16, 16, 3) and np.array_equal(found[0], expected)


def test_a_film_is_the_frames_that_serving_would_see() -> None:
    data = film(num_frames=12)
    found = frames(MediaPart("video", data), SMALL, OPTIONS)
    assert found.shape == (4, 16, 16, 3)
    assert np.array_equal(found, read_frames(data, SMALL, OPTIONS).pixels)


BROKEN: list[tuple[bytes, str]] = [
    (b"", "no picture"),
    (b"hello", "no picture"),
    (noise(format="TIFF"), "no picture"),
    (noise()[:1500], "cut off or damaged"),
    (noise(format="WEBP")[:400], "no picture|damaged"),
    (picture()[:40], "no picture|damaged"),
    (claiming(50_000, 2_000), "over 50,000,000 pixels"),
    (claiming(100_000, 100_000), "over 50,000,000 pixels"),
    (claiming(3_000, 3_000), "cut off or damaged"),
]


@pytest.mark.parametrize(("data", "reason"), BROKEN)
def test_what_cannot_be_decoded_is_a_problem_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Problem, match=reason):
        of_picture(data)


def test_the_limit_is_on_pixels() -> None:
    assert of_picture(picture(size=(10, 10)), FilmLimits(max_pixels=100)).shape == (1, 16, 16, 3)
    with pytest.raises(Problem, match="11 x 10 is over 100 pixels"):
        of_picture(picture(size=(11, 10)), FilmLimits(max_pixels=100))


@pytest.mark.parametrize("data", [b"", noise()[:1500], film()[:900], b"\x1a\x45\xdf\xa3" * 20])
def test_a_film_that_cannot_be_decoded_is_a_problem(data: bytes) -> None:
    with pytest.raises(Problem):
        frames(MediaPart("video", data), SMALL, OPTIONS)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_anywhere_is_a_problem_or_a_picture(data: st.DataObject) -> None:
    whole = bytearray(noise((24, 24), data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    kind = data.draw(st.sampled_from(["image", "video"]))
    try:
        found = frames(MediaPart(kind, bytes(whole)), SMALL, OPTIONS)  # type: ignore[arg-type]
    except Problem:
        return
    assert found.shape[1:] == (16, 16, 3)
