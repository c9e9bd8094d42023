"""Films through the server's decoder, in this process, and through a real worker."""

import asyncio

import numpy as np
import pytest

from films import GREY, animation, film, sound
from flamingo_model.media import Transform, media_digest
from flamingo_server.errors import BadRequest, FlamingoError, TooLarge, UnsupportedMedia
from flamingo_server.media import DecodedMedia, FilmOptions, MediaLimits, MediaPool
from flamingo_server.media.decode import decode_film, decode_picture

TRANSFORM = Transform("squash", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LIMITS = MediaLimits(max_pixels=100_000, max_frames=8, max_film_seconds=60, max_film_frames=16)


def decode(data: bytes, fps: float = 1.0, max_frames: int = 16) -> DecodedMedia:
    return decode_film(data, TRANSFORM, LIMITS, FilmOptions(fps, max_frames))


def refusal(
    data: bytes, limits: MediaLimits = LIMITS, options: FilmOptions | None = None
) -> FlamingoError:
    with pytest.raises(FlamingoError) as caught:
        decode_film(data, TRANSFORM, limits, options or FilmOptions(), "prompt[2].video")
    assert caught.value.param == "prompt[2].video" and "0x" not in caught.value.message
    return caught.value


def test_a_film_is_its_frames_with_the_facts_about_it() -> None:
    media = decode(film(num_frames=30))
    assert media.pixels.shape == (3, 16, 16, 3) and media.format == "MP4"
    assert (media.width, media.height, media.num_frames) == (32, 32, 30)
    assert media.duration == pytest.approx(3) and media.times == pytest.approx((0, 1, 2))
    assert np.abs(media.pixels.mean((1, 2, 3)) - [GREY[0], GREY[10], GREY[20]]).max() < 4


def test_the_digest_is_that_of_the_frames_whatever_rate_and_container_they_came_by() -> None:
    slow, fast = animation("PNG", [1000] * 4), animation("WEBP", [100] * 4)
    first, second = decode(slow, fps=1), decode(fast, fps=10)
    assert first.digest == second.digest == media_digest(first.pixels, TRANSFORM)
    assert first.times != second.times and decode(slow, fps=0.5).digest != first.digest


def test_a_film_of_one_frame_is_another_thing_than_the_picture() -> None:
    data = animation("PNG", [100])
    assert decode(data).digest != decode_picture(data, TRANSFORM, LIMITS).digest
    assert (decode(data).pixels[0] == decode_picture(data, TRANSFORM, LIMITS).pixels).all()


@pytest.mark.parametrize(
    ("limits", "figure"),
    [
        (MediaLimits(max_film_seconds=2.5), "3.0 s; the limit is 2.5 s"),
        (MediaLimits(max_pixels=1000), "32 x 32 = 1,024 pixels; the limit is 1,000"),
    ],
)
@pytest.mark.parametrize("data", [film(), animation("GIF", [1500, 1500], (32, 32))])
def test_a_film_over_a_limit_is_refused_with_figures(
    data: bytes, limits: MediaLimits, figure: str
) -> None:
    error = refusal(data, limits)
    assert isinstance(error, TooLarge) and error.code == "film_too_large"
    assert figure in error.message


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_of_too_many_frames_is_refused(file_format: str) -> None:
    error = refusal(animation(file_format, [100] * 9))
    assert isinstance(error, TooLarge) and "the limit is 8" in error.message
    assert len(decode(film(num_frames=100)).pixels) == 10  # video is decoded where it is wanted


def test_wanting_too_many_frames_is_refused() -> None:
    error = refusal(film(), options=FilmOptions(max_frames=17))
    assert isinstance(error, TooLarge) and "16 or less" in error.message


@pytest.mark.parametrize("data", [b"", b"RIFF\x24\0\0\0AVI LIST", b"#EXTM3U\n", b"text" * 99])
def test_what_is_no_film_is_unsupported(data: bytes) -> None:
    error = refusal(data)
    assert isinstance(error, UnsupportedMedia) and error.code == "not_a_film"


def test_sound_alone_is_unsupported() -> None:
    assert isinstance(refusal(sound()), UnsupportedMedia)


@pytest.mark.parametrize(
    "data", [film(), film("libvpx", "webm"), animation("GIF"), animation("WEBP")]
)
def test_a_film_cut_off_says_so(data: bytes) -> None:
    error = refusal(data[: len(data) // 2])
    assert isinstance(error, BadRequest) and error.code == "truncated_film"
    assert "whole file" in error.message


def test_a_film_sent_as_a_picture_is_refused() -> None:
    with pytest.raises(UnsupportedMedia):
        decode_picture(film(), TRANSFORM, LIMITS)


def test_a_worker_decodes_films_and_remembers_them_by_what_was_wanted() -> None:
    pool, data = MediaPool(TRANSFORM, LIMITS), film(num_frames=40)

    async def scenario() -> None:
        once = await pool.decode(data, film=FilmOptions(1.0))
        assert once.pixels.shape[0] == 4 and not once.pixels.flags.writeable
        assert await pool.decode(data, film=FilmOptions(1.0)) is once
        assert len((await pool.decode(data, film=FilmOptions(2.0))).pixels) == 8
        with pytest.raises(UnsupportedMedia) as caught:
            await pool.decode(data, 3)
        assert caught.value.param == "prompt[3].image"
        with pytest.raises(BadRequest) as damaged:
            await pool.decode(data[:500], 3, film=FilmOptions())
        assert damaged.value.param == "prompt[3].video"

    try:
        asyncio.run(scenario())
        loaded = pool._processes.schedule(eval, args=("list(__import__('sys').modules)",)).result()
        assert "av" in loaded and "torch" not in loaded
    finally:
        pool.close()


def test_limits_of_bytes_and_frames_hold_before_a_worker_is_asked() -> None:
    pool = MediaPool(TRANSFORM, MediaLimits(max_media_bytes=10, max_film_frames=4))
    with pytest.raises(TooLarge, match="The film is 11 bytes"):
        asyncio.run(pool.decode(b"x" * 11, film=FilmOptions()))
    with pytest.raises(TooLarge, match="4 or less"):
        asyncio.run(pool.decode(b"x", film=FilmOptions(max_frames=5)))
    pool.close()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_a_damaged_animation_is_frames_or_a_clients_error(file_format: str) -> None:
    data, rng = animation(file_format), np.random.default_rng(5)
    for _ in range(200):
        mutant = bytearray(data)
        for at in rng.integers(0, len(mutant), 4):
            mutant[at] = rng.integers(0, 256)
        try:
            assert decode(bytes(mutant), fps=5).pixels.shape[1:] == (16, 16, 3)
        except FlamingoError as error:
            assert error.status in (400, 413, 415), error.__cause__
