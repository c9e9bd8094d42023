"""Small films made in memory, each frame of one known grey: GREY[at]."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image

GREY = [at * 29 % 73 * 3 + 16 for at in range(20_000)]  # 73 greys, three apart: encoding blurs them


def film(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    num_frames: int = 30,
    rate: int = 10,
    gop: int = 10,
    size: tuple[int, int] = (32, 32),
    times: Sequence[int] | None = None,
    rotation: int = 0,
    scene: Callable[[int], np.ndarray] | None = None,
    with_sound: bool = False,
    encoder: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """`times` are in frames of `rate`; frame `at` is `scene(at)`, or all GREY[at], at any time."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "bf": "3", "x264-params": f"keyint={gop}"}
        if codec == "mpeg4":
            stream.options = {"qscale": "1", "qmax": "1", "qmin": "1"}
        stream.options = encoder or stream.options
        voice = output.add_stream("aac", rate=48_000) if with_sound else None
        if rotation:
            stream.set_display_rotation(rotation)
        for at, time in enumerate(range(num_frames) if times is None else times):
            pixels = paint(GREY[at], size) if scene is None else scene(at)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            output.mux(stream.encode(frame))
            if voice:
                output.mux(voice.encode(silence(at, 48_000 // rate)))
        for encoding in (stream, voice) if voice else (stream,):
            output.mux(encoding.encode(None))
    return file.getvalue()


def shorten(data: bytes, frames: int, rate: int = 10) -> bytes:
    """The MP4 without its first frames, by an edit list, as a phone does: their bytes stay."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None or packet.pts is None:
                continue
            shift = round(frames / rate / float(packet.time_base))
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            output.mux(packet)
    return file.getvalue()


def moving(at: int) -> np.ndarray:
    """32 × 32 of coloured bricks that drift: a frame decoded without its past looks wrong."""
    bricks = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    wall = bricks.repeat(8, 0).repeat(8, 1)
    return np.ascontiguousarray(np.roll(wall, 3 * at, axis=1)[:32, :32])


def silence(at: int, samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.int16), layout="mono")
    frame.sample_rate, frame.pts = 48_000, at * samples
    return frame


def paint(grey: int, size: tuple[int, int]) -> np.ndarray:
    return np.full((size[1], size[0], 3), grey, dtype=np.uint8)


def sound(container: str = "mp4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac" if container == "mp4" else "libopus", rate=48_000)
        for at in range(5):
            output.mux(stream.encode(silence(at, 960)))
        output.mux(stream.encode(None))
    return file.getvalue()


def animation(
    file_format: str = "GIF", durations: Sequence[int] = (100,) * 8, size: tuple[int, int] = (8, 8)
) -> bytes:
    frames = [Image.fromarray(paint(GREY[at], size)) for at in range(len(durations))]
    file = io.BytesIO()
    frames[0].save(
        file,
        file_format,
        save_all=True,
        append_images=frames[1:],
        duration=list(durations),
        lossless=True,
    )
    return file.getvalue()
