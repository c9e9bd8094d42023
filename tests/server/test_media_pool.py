"""Real worker processes: what a bad picture may cost, and whom."""

import asyncio
import io
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_model.media import Transform
from flamingo_server.errors import BadRequest, Draining, TooLarge, UnsupportedMedia
from flamingo_server.media import DecodedMedia, MediaLimits, MediaPool

TRANSFORM = Transform("pad", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def png(colour: str, side: int = 16, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side), colour).save(file, "PNG", compress_level=1)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(100_000)), b"IEND")
    framed = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


SLOW = png("red", side=7000)  # a second of a worker's time, 0.6 MB


@pytest.fixture(scope="module")
def warm_pool() -> Iterator[MediaPool]:
    pool = MediaPool(TRANSFORM)
    asyncio.run(pool.decode(png("white")))
    yield pool
    pool.close()


@pytest.fixture
def make_pool() -> Iterator[Callable[..., MediaPool]]:
    pools: list[MediaPool] = []

    def make(**options: Any) -> MediaPool:
        pools.append(MediaPool(TRANSFORM, **options))
        pools[-1].warm()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


async def outcome(decoding: Awaitable[DecodedMedia]) -> DecodedMedia | Exception:
    try:
        return await decoding
    except Exception as error:
        return error


def ask_worker(pool: MediaPool, expression: str) -> Any:
    return pool._processes.schedule(eval, args=(expression,)).result(timeout=30)


def new_workers(before: set[int | None]) -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()} - before


async def wait_until_decoding(pid: int) -> None:
    """A decoding worker holds the picture's 100 MB and more; an idle one about 40."""
    while int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 < 100_000_000:
        await asyncio.sleep(0.005)


def test_a_worker_decodes_and_reports(warm_pool: MediaPool) -> None:
    media = asyncio.run(warm_pool.decode(png("blue", side=40)))
    assert (media.width, media.height, media.format) == (40, 40, "PNG")
    assert (media.pixels == (0, 0, 255)).all() and len(media.digest) == 64


def test_the_worker_imports_no_torch_and_no_web_framework(warm_pool: MediaPool) -> None:
    loaded = set(ask_worker(warm_pool, "list(__import__('sys').modules)"))
    assert "PIL.Image" in loaded
    assert loaded.isdisjoint({"torch", "fastapi", "starlette", "pydantic", "pytest"})


def test_the_worker_loads_no_decoder_beyond_the_allowed(warm_pool: MediaPool) -> None:
    asyncio.run(outcome(warm_pool.decode(b"neither this nor that")))
    loaded = set(ask_worker(warm_pool, "list(__import__('sys').modules)"))
    assert loaded.isdisjoint({"PIL.TiffImagePlugin", "PIL.FpxImagePlugin", "PIL.EpsImagePlugin"})


def test_errors_name_the_place_in_the_prompt(warm_pool: MediaPool) -> None:
    error = asyncio.run(outcome(warm_pool.decode(b"nothing", 3)))
    assert isinstance(error, UnsupportedMedia) and error.param == "prompt[3].image"
    error = asyncio.run(outcome(warm_pool.decode(b"nothing", param="query.image")))
    assert isinstance(error, UnsupportedMedia) and error.param == "query.image"


def test_a_huge_claim_is_refused_at_once_with_its_figures(warm_pool: MediaPool) -> None:
    started = time.monotonic()
    error = asyncio.run(outcome(warm_pool.decode(png_claiming(60_000, 60_000))))
    assert isinstance(error, TooLarge) and "60,000 x 60,000" in error.message
    assert time.monotonic() - started < 1


def test_a_picture_seen_before_is_not_decoded_again(warm_pool: MediaPool) -> None:
    first = asyncio.run(warm_pool.decode(png("green")))
    assert asyncio.run(warm_pool.decode(png("green"))) is first


def test_a_remembered_picture_cannot_be_painted_over(warm_pool: MediaPool) -> None:
    media = asyncio.run(warm_pool.decode(png("green")))
    with pytest.raises(ValueError, match="read-only"):
        media.pixels[0, 0, 0] = 1


def test_too_many_bytes_do_not_reach_a_worker() -> None:
    pool = MediaPool(TRANSFORM, MediaLimits(max_media_bytes=10))
    error = asyncio.run(outcome(pool.decode(b"x" * 11)))
    assert isinstance(error, TooLarge) and error.code == "media_too_many_bytes"
    pool.close()


def test_a_slow_picture_times_out_and_the_next_one_works(
    make_pool: Callable[..., MediaPool],
) -> None:
    async def scenario(pool: MediaPool) -> None:
        await pool.decode(png("white"))
        error = await outcome(pool.decode(SLOW))
        assert isinstance(error, TooLarge) and error.code == "decode_timeout"
        assert "0.25 s" in error.message
        assert isinstance(await outcome(pool.decode(png("red"))), DecodedMedia)

    asyncio.run(scenario(make_pool(limits=MediaLimits(decode_timeout_s=0.25))))


def test_a_worker_killed_in_mid_decode_fails_that_picture_only(
    make_pool: Callable[..., MediaPool],
) -> None:
    before = new_workers(set())

    async def scenario(pool: MediaPool) -> None:
        await pool.decode(png("white"))
        (worker,) = new_workers(before)
        assert worker is not None
        slow = asyncio.create_task(outcome(pool.decode(SLOW)))
        small = asyncio.create_task(outcome(pool.decode(png("red"))))
        await wait_until_decoding(worker)
        os.kill(worker, signal.SIGKILL)
        error = await slow
        assert isinstance(error, BadRequest) and error.code == "decoder_crashed"
        assert isinstance(await small, DecodedMedia)
        assert isinstance(await pool.decode(png("blue")), DecodedMedia)

    asyncio.run(scenario(make_pool()))


@pytest.mark.parametrize("pause", [0.0, 0.3], ids=["unnoticed", "noticed"])
def test_an_idle_worker_killed_fails_no_picture(
    make_pool: Callable[..., MediaPool], pause: float
) -> None:
    before = new_workers(set())

    async def scenario(pool: MediaPool) -> None:
        await pool.decode(png("white"))
        (worker,) = new_workers(before)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        await asyncio.sleep(pause)
        colours = ("red", "green", "blue")
        await asyncio.gather(*(pool.decode(png(colour)) for colour in colours))

    asyncio.run(scenario(make_pool()))


def test_memory_is_bounded_in_the_worker(make_pool: Callable[..., MediaPool]) -> None:
    pool = make_pool(worker_memory_bytes=100 * 2**20)
    error = asyncio.run(outcome(pool.decode(SLOW)))
    assert isinstance(error, TooLarge) and "memory" in error.message
    assert isinstance(asyncio.run(outcome(pool.decode(png("red")))), DecodedMedia)


def test_a_request_that_goes_away_leaves_the_worker_to_the_others(
    make_pool: Callable[..., MediaPool],
) -> None:
    before = new_workers(set())

    async def scenario(pool: MediaPool) -> None:
        await pool.decode(png("white"))
        workers = new_workers(before)
        gone = asyncio.create_task(pool.decode(SLOW))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await pool.decode(png("red"))
        assert new_workers(before) == workers

    asyncio.run(scenario(make_pool()))


def test_closing_ends_pictures_under_way(make_pool: Callable[..., MediaPool]) -> None:
    async def scenario(pool: MediaPool) -> None:
        decodings = [asyncio.create_task(outcome(pool.decode(SLOW + bytes([at])))) for at in (1, 2)]
        await asyncio.sleep(0.05)
        pool.close()
        errors = [*await asyncio.gather(*decodings), await outcome(pool.decode(png("red")))]
        assert [type(error) for error in errors] == [Draining] * 3

    asyncio.run(scenario(make_pool()))


def test_making_and_closing_a_pool_starts_no_process() -> None:
    before = new_workers(set())
    pool = MediaPool(TRANSFORM)
    assert not new_workers(before)
    pool.close()


def test_neither_the_parent_decodes_nor_the_worker_runs_the_parents_script(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import asyncio, sys, zipapp\n"
        "from flamingo_model.media import Transform\n"
        "from flamingo_server.media import MediaPool\n"
        "pool = MediaPool(Transform('pad', 16, (0.5,) * 3, (0.25,) * 3))\n"
        "media = asyncio.run(pool.decode(open(sys.argv[1], 'rb').read()))\n"
        "in_worker = \"'zipapp' in __import__('sys').modules\"\n"
        "print(media.width, pool._processes.schedule(eval, args=(in_worker,)).result())\n"
        "print([name for name in sys.modules if name.endswith('ImagePlugin')])\n"
        "pool.close()\n"
    )
    picture = tmp_path / "picture.png"
    picture.write_bytes(png("red", side=40))
    command = [sys.executable, str(script), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["40 False", "[]"], done.stderr
