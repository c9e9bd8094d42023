"""Pictures decoded in processes that can be killed. Here, bytes go out and pixels come back.

A picture that hangs, exhausts memory or crashes its decoder costs one worker and one error; the
next picture finds a fresh worker.
"""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from pebble import ProcessExpired, ProcessPool

from flamingo_model.media import Transform
from flamingo_server.errors import BadRequest, Draining, EngineFailure, TooLarge, naming
from flamingo_server.media.cache import PictureCache
from flamingo_server.media.decode import DecodedMedia, decode_picture, start_worker
from flamingo_server.media.limits import MIB, MediaLimits
from flamingo_server.media.spawn import BareSpawnContext

_NUM_TRIES = 3  # a pool broken by a neighbour's death is rebuilt, and the picture handed in again
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
        self, data: bytes, index: int = 0, *, param: str | None = None
    ) -> DecodedMedia:
        """The pixels of one encoded picture; the same bytes are decoded once while remembered.

        `index` is the picture's place in the prompt, for the error's `param`; `param` replaces it.

        Raises:
            TooLarge: over a limit of bytes, pixels, frames, memory or time.
            UnsupportedMedia: not a picture.
            BadRequest: a damaged picture, or one that crashed its decoder.
            Draining: the pool is closed.
        """
        with naming(param or f"prompt[{index}].image"):
            self.limits.check_bytes(len(data))
            key = await _sha256(data)
            media = self._cache.get(key)
            if media is None:
                media = await self._decode_in_worker(data)
                media.pixels.flags.writeable = False  # shared by all requests that send it
                self._cache.put(key, media)
            return media

    async def _decode_in_worker(self, data: bytes) -> DecodedMedia:
        for _ in range(_NUM_TRIES):
            if self._is_closed:
                raise Draining(
                    "The server is shutting down. Send the request again later.", code="draining"
                )
            processes = self._processes
            try:
                return await self._run(processes, data)
            except TimeoutError:
                raise self._too_slow() from None
            except ProcessExpired:
                raise _crashed() from None
            except RuntimeError:  # a worker died between pictures: pebble gives up its whole pool
                await self._replace(processes)
        raise EngineFailure("The picture decoder does not start.", code="decoder_unavailable")

    async def _run(self, processes: ProcessPool, data: bytes) -> DecodedMedia:
        future: Future[DecodedMedia] = processes.schedule(
            decode_picture,
            args=(data, self._transform, self.limits),
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

    def _too_slow(self) -> TooLarge:
        message = (
            f"The picture took longer than {self.limits.decode_timeout_s:g} s to decode. "
            "Scale it down, or save it as a plain JPEG or PNG."
        )
        return TooLarge(message, code="decode_timeout")


def _crashed() -> BadRequest:
    message = "The picture crashed its decoder. Save it again as a plain JPEG or PNG."
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
