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
from flamingo_model.training.data.document import Document, MediaPart, TextPart
from flamingo_model.training.data.examine import examine
from flamingo_model.training.data.media import decoding, frames, read_film
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


def animation(num_frames: int, milliseconds: int = 100, size: int = 32) -> bytes:
    file = io.BytesIO()
    first, *rest = (Image.new("RGB", (size, size), (8 * i, 0, 0)) for i in range(num_frames))
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=milliseconds)
    return file.getvalue()


def decoded_within(data: bytes, num_frames: int) -> int:
    """How many frames come of a film of 32 x 32 where so many may be decoded."""
    with decoding():
        return len(read_film(data, SMALL, OPTIONS, max_decoded=num_frames * 32 * 32).pixels)


def test_a_film_is_refused_for_the_frames_that_must_be_decoded_and_not_for_those_it_has() -> None:
    few_keys, all_keys = film(num_frames=30, gop=30), film(num_frames=30, gop=1)
    with pytest.raises(Problem, match="more than 15,360 pixels to decode: make the film smaller"):
        decoded_within(few_keys, 15)
    assert decoded_within(all_keys, 15) == decoded_within(few_keys, 40) == 4


def test_an_animation_is_refused_as_a_video_is() -> None:
    with pytest.raises(Problem, match="pixels to decode"):
        decoded_within(animation(30), 15)
    assert decoded_within(animation(30), 40) == 4


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (FilmLimits(max_seconds=2), "the limit is 2 s"),
        (FilmLimits(max_frames=29), "the limit is 29"),
        (FilmLimits(max_pixels=1000), "the limit is 1,000 pixels"),
    ],
)
def test_what_is_decoded_is_counted_beside_a_film_s_own_limits(
    limits: FilmLimits, reason: str
) -> None:
    for data in (film(num_frames=30), animation(30)):
        with pytest.raises(Problem, match=reason):
            frames(MediaPart("video", data), SMALL, OPTIONS, limits)


def test_the_check_refuses_a_film_for_the_reason_that_training_gives() -> None:
    part = MediaPart("video", animation(2, milliseconds=301_000))
    with pytest.raises(Problem, match="the limit is 600 s") as refused:
        frames(part, SMALL, OPTIONS)
    (found,) = examine([Document((part, TextPart("long")), "a:1")], None)
    assert found.problem == f"film 1: {refused.value}"


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
