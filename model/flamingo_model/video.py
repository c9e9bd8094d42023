"""Video → frames with PyAV. Opens no second file: the format is fixed by the film's first bytes.

A film is demuxed whole, which costs little, so that every frame's time is known before any is
decoded. Then only what leads from a key frame to a wanted frame is decoded: the packets are fed by
hand, so this does not lean on how well a container seeks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import NoReturn, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from flamingo_model.film import (
    Film,
    FilmLimits,
    FilmOptions,
    NotAFilm,
    damaged,
    not_a_film,
    pick,
    video_container,
)
from flamingo_model.media import Transform, to_pixels

_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "libdav1d")
_SEGMENT = b"\x18\x53\x80\x67"
_FORMATS = {"mov": "MP4", "matroska": "WEBM"}
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def read_video(data: bytes, transform: Transform, options: FilmOptions, limits: FilmLimits) -> Film:
    """`film.read_frames` for the bytes of a video container.

    Raises:
        NotAFilm, DamagedFilm, FilmTooLarge: as there.
    """
    container = video_container(data)
    if container is None:
        raise not_a_film()
    if _is_cut_off(data, container):
        raise damaged()
    try:
        with _open(data, container) as opened:
            stream = _moving_picture(opened)
            limits.check_pixels(stream.codec_context.width, stream.codec_context.height)
            limits.check_seconds(Fraction(opened.duration or 0, av.time_base))
            stream.codec_context.options = _options(limits)
            index = _Index.read(opened, stream, limits)
            return _film(index, stream.codec_context, transform, options, limits, container)
    except MemoryError:
        raise
    except FFmpegError:  # its text stays here: it may name codecs, addresses and options
        raise damaged() from None


_Run: TypeAlias = "tuple[list[Packet[VideoStream]], list[int]]"  # to decode; wanted times


class _NoCleanStart(Exception):
    """A key frame led to no whole picture. Live streams refresh theirs bit by bit, with no frame
    that stands alone but the first: such films are decoded from the start."""


@dataclass(frozen=True)
class _Index:
    """The film's packets in decoding order, and when each one's picture comes on view.

    `order` lists (time, place in `packets`) of all pictures by time, in ticks of `tick` seconds.
    """

    packets: list[Packet[VideoStream]]
    order: list[tuple[int, int]]
    tick: Fraction

    @classmethod
    def read(cls, container: InputContainer, stream: VideoStream, limits: FilmLimits) -> _Index:
        packets = []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise damaged()
            if packet.size:
                packets.append(packet)
                limits.check_frames(len(packets))
        order = sorted(
            (packet.pts, place)
            for place, packet in enumerate(packets)
            if packet.pts is not None and not packet.is_discard
        )
        if not order:
            raise NotAFilm("The film has no frames.")
        index = cls(packets, order, Fraction(stream.time_base or 0))
        limits.check_seconds(index.seconds(index.end))
        return index

    @property
    def end(self) -> int:
        """When the last frame goes; where nothing says so, it stays as long as the one before."""
        last, place = self.order[-1]
        stay = self.packets[place].duration or last - self.order[max(0, len(self.order) - 2)][0]
        return last + stay

    def seconds(self, time: int) -> Fraction:
        return (time - self.order[0][0]) * self.tick

    def run_up_to(self, wanted: list[int]) -> _Run:
        """Everything from the start to the last of the wanted frames."""
        last = max(self.order[at][1] for at in wanted)
        return self.packets[: last + 1], [self.order[at][0] for at in wanted]

    def runs(self, wanted: list[int]) -> Iterator[_Run]:
        """For each key frame that leads to wanted frames: the packets to decode, and their times.

        `wanted` are places in `order`, ascending. A frame's key frame is the last one that comes
        on view no later and is decoded no later.
        """
        keys = [(time, place) for time, place in self.order if self.packets[place].is_keyframe]
        run: dict[int, list[int]] = {}
        for time, place in (self.order[at] for at in wanted):
            at = bisect_right(keys, (time, place)) - 1
            run.setdefault(keys[at][1] if at >= 0 else 0, []).append(place)
        for first, places in run.items():
            times = [self.packets[place].pts for place in places]
            yield (
                self.packets[first : max(places) + 1],
                [time for time in times if time is not None],
            )


def _film(
    index: _Index,
    codec: VideoCodecContext,
    transform: Transform,
    options: FilmOptions,
    limits: FilmLimits,
    container: str,
) -> Film:
    starts = [index.seconds(time) for time, _ in index.order]
    end = index.seconds(index.end)
    picked = pick(starts, end, options, index.tick)
    wanted = list(dict.fromkeys(picked))
    try:
        taken = _take(codec, list(index.runs(wanted)), transform, limits, strict=True)
    except _NoCleanStart:
        taken = _take(codec, [index.run_up_to(wanted)], transform, limits, strict=False)
    squares, num_decoded, (width, height) = taken
    assert len(squares) == len(wanted)
    place = {at: num for num, at in enumerate(wanted)}
    return Film(
        pixels=np.stack([squares[place[at]] for at in picked]),
        times=tuple(float(starts[at]) for at in picked),
        duration=float(end),
        width=width,
        height=height,
        num_frames=len(index.order),
        num_decoded=num_decoded,
        format=_FORMATS[container],
    )


def _take(
    codec: VideoCodecContext,
    runs: list[_Run],
    transform: Transform,
    limits: FilmLimits,
    *,
    strict: bool,
) -> tuple[list[NDArray[np.uint8]], int, tuple[int, int]]:
    """The wanted squares, how many frames were decoded for them, and the size of the first."""
    squares, num_decoded, size = list[NDArray[np.uint8]](), 0, (0, 0)
    for packets, times in runs:
        num_decoded += len(packets)
        codec.flush_buffers()
        for frame in _on_view(_decode(codec, packets, limits, strict), times, strict):
            picture = _upright(frame)
            size = size if squares else picture.size
            squares.append(to_pixels(picture, transform))
    return squares, num_decoded, size


def _decode(
    codec: VideoCodecContext, packets: list[Packet[VideoStream]], limits: FilmLimits, strict: bool
) -> Iterator[VideoFrame]:
    """All frames of the packets, by time."""
    for packet in (*packets, None):  # None: let go of the frames held back for reordering
        for frame in codec.decode(packet):
            limits.check_pixels(frame.width, frame.height)
            if frame.is_corrupt:
                raise _NoCleanStart if strict else damaged()
            yield frame


def _on_view(frames: Iterator[VideoFrame], times: list[int], strict: bool) -> Iterator[VideoFrame]:
    """For each of the ascending times, the last frame that came on view until then.

    Where the first frame comes later than the first time, that frame, unless `strict`.
    """
    left, shown = list(times), None
    for frame in frames:
        while left and frame.pts is not None and frame.pts > left[0]:
            if shown is None and strict:
                raise _NoCleanStart
            yield shown or frame
            left.pop(0)
        shown = frame
    if shown is None:
        raise _NoCleanStart if strict else damaged()
    for _ in left:
        yield shown


def _upright(frame: VideoFrame) -> Image.Image:
    """RGB, turned as the film's display matrix says, to the nearest quarter."""
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = round(frame.rotation / 90) * 90 % 360
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def _open(data: bytes, container: str) -> InputContainer:
    return av.open(
        BytesIO(data),
        mode="r",
        format=container,
        container_options={"codec_whitelist": ",".join(_CODECS)},
        metadata_errors="replace",
        io_open=_refuse,
    )


def _refuse(*_: object) -> NoReturn:
    """A container may name further files to open. None is."""
    raise damaged()


def _moving_picture(container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        raise NotAFilm("The file has no moving picture in it, only sound or a cover.")
    codec = streams[0].codec_context
    if codec is None or codec.name not in _CODECS:
        message = "The film's codec is not one this server reads: save it as H.264 or VP9."
        raise NotAFilm(message)
    return streams[0]


def _options(limits: FilmLimits) -> dict[str, str]:
    """One thread, because workers are processes; and a bound for frames that grow on the way.

    That bound is loose, since decoders round sizes up; `_decode` has the exact one.
    """
    return {"threads": "1", "max_pixels": str(2 * limits.max_pixels + 2**16)}


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_cut_off(data: bytes, container: str) -> bool:
    """Whether the file promises more bytes than came. A live recording promises nothing."""
    return (_mov_end(data) if container == "mov" else _matroska_end(data)) > len(data)


def _mov_end(data: bytes) -> int:
    """End of the last top-level box; a size of 1 announces a longer field, 0 is "to the end"."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return at
        at += size
    return at


def _matroska_end(data: bytes) -> int:
    """End of the segment, from the sizes of the EBML header and of the segment itself."""
    size, at = _vint(data, 4)
    at += size
    if data[at : at + 4] != _SEGMENT:
        return 0
    size, at = _vint(data, at + 4)
    return at + size


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """EBML's variable-length number at a position, 0 for "unknown"; and the position after it."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    bits = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    return (0 if bits == (1 << 7 * width) - 1 else bits), at + width
