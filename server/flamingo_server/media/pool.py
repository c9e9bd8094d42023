"""Pictures and films decoded in processes that can be killed: bytes go out, pixels come back.

One that hangs, exhausts memory or crashes its decoder costs one worker and one error; the next
finds a fresh worker.
"""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from pebble import ProcessExpired, ProcessPool

from flamingo_model.film import FilmOptions
from flamingo_model.media import Transform
from flamingo_server.errors import BadRequest, Draining, EngineFailure, TooLarge, naming
from flamingo_server.media.cache import PictureCache
from flamingo_server.media.decode import DecodedMedia, decode_film, decode_picture, start_worker
from flamingo_server.media.limits import MIB, MediaLimits
from flamingo_server.media.spawn import BareSpawnContext

_NUM_TRIES = 3  # a pool broken by a neighbour's death is rebuilt, and the picture handed in again
_ADVICE = {False: "save it as a plain JPEG or PNG", True: "save a shorter part of it as H.264"}
_HASH_IN_THREAD_BYTES = MIB  # about a millisecond of SHA-256: what the event loop may lose


class MediaPool:
    """Decodes with one transform under one set of limits, in `workers` processes.

    Cheap to make: processes start at `warm()`, or with the first picture. One event loop at a
    time; `close()` when done.
    """

    def __init__(
        self,
        transform: Transform,
        limits: MediaLimits | None = None,
        workers: int = 1,
        *,
        cache_bytes: int = 64 * MIB,
        worker_memory_bytes: int = 2048 * MIB,
    ) -> None:
        self._transform = transform
        self.limits = limits or MediaLimits()
        self._num_workers = workers
        self._worker_memory_bytes = worker_memory_bytes
        self._cache = PictureCache(cache_bytes)
        self._under_way: set[Future[DecodedMedia]] = set()
        self._is_closed = False
        self._processes = self._new_processes()

    def warm(self) -> None:
        """Starts the workers in the background; returns at once."""
        self._processes.schedule(int)

    def close(self) -> None:
        """Kills the workers, whatever they are doing. Pictures under way end in an error."""
        self._is_closed = True
        self._abandon()
        _kill(self._processes)

    async def decode(
        self,
        data: bytes,
        index: int = 0,
        *,
        param: str | None = None,
        film: FilmOptions | None = None,
    ) -> DecodedMedia:
        """The pixels of one picture, or of a film's frames where `film` says which.

        The same bytes, with the same options, are decoded once while remembered. `index` is the
        place in the prompt, for the error's `param`; `param` replaces it.

        Raises:
            TooLarge: over a limit of bytes, seconds, pixels, frames, memory or time.
            UnsupportedMedia: not a picture, or not a film.
            BadRequest: damaged, or crashed its decoder.
            Draining: the pool is closed.
        """
        noun = "film" if film else "picture"
        with naming(param or f"prompt[{index}].{'video' if film else 'image'}"):
            self.limits.check_bytes(len(data), noun)
            if film:
                self.limits.check_film(film)
            key = await _sha256(data) + repr(film or "").encode()
            media = self._cache.get(key)
            if media is None:
                media = await self._decode_in_worker(data, film)
                media.pixels.flags.writeable = False  # shared by all requests that send it
                self._cache.put(key, media)
            return media

    async def _decode_in_worker(self, data: bytes, film: FilmOptions | None) -> DecodedMedia:
        for _ in range(_NUM_TRIES):
            if self._is_closed:
                raise Draining(
                    "The server is shutting down. Send the request again later.", code="draining"
                )
            processes = self._processes
            try:
                return await self._run(processes, data, film)
            except TimeoutError:
                raise self._too_slow(film) from None
            except ProcessExpired:
                raise _crashed(film) from None
            except RuntimeError:  # a worker died between pictures: pebble gives up its whole pool
                await self._replace(processes)
        raise EngineFailure("The picture decoder does not start.", code="decoder_unavailable")

    async def _run(
        self, processes: ProcessPool, data: bytes, film: FilmOptions | None
    ) -> DecodedMedia:
        future: Future[DecodedMedia] = processes.schedule(
            decode_film if film else decode_picture,
            args=(data, self._transform, self.limits, *([film] if film else [])),
            timeout=self.limits.decode_timeout_s,
        )
        self._under_way.add(future)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not _is_cancelling():
                raise BrokenProcessPool from None  # by `_abandon`
            if not future.running():  # stopping a running one would cost a worker, not save one
                future.cancel()
            raise
        finally:
            self._under_way.discard(future)

    async def _replace(self, broken: ProcessPool) -> None:
        if self._processes is broken and not self._is_closed:
            self._processes = self._new_processes()
            self._abandon()
            await asyncio.to_thread(_kill, broken)

    def _abandon(self) -> None:
        """Ends every wait: pebble leaves the futures of a stopped pool open for ever."""
        for future in self._under_way:
            future.cancel()

    def _new_processes(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._num_workers,
            initializer=start_worker,
            initargs=(self._worker_memory_bytes,),
            context=BareSpawnContext(),
        )

    def _too_slow(self, film: FilmOptions | None) -> TooLarge:
        noun, limit = "film" if film else "picture", self.limits.decode_timeout_s
        message = (
            f"The {noun} took longer than {limit:g} s to decode. "
            f"Scale it down, or {_ADVICE[bool(film)]}."
        )
        return TooLarge(message, code="decode_timeout")


def _crashed(film: FilmOptions | None) -> BadRequest:
    noun = "film" if film else "picture"
    message = f"The {noun} crashed its decoder: {_ADVICE[bool(film)]}."
    return BadRequest(message, code="decoder_crashed")


def _is_cancelling() -> bool:
    """Whether the request itself was cancelled, rather than the future it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _kill(processes: ProcessPool) -> None:
    processes.stop()  # type: ignore[no-untyped-call]
    processes.join()


async def _sha256(data: bytes) -> bytes:
    if len(data) < _HASH_IN_THREAD_BYTES:
        return hashlib.sha256(data).digest()
    return (await asyncio.to_thread(hashlib.sha256, data)).digest()
