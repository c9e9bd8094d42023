"""Small films made in memory, each frame of one known grey: GREY[at]."""

import io
from collections.abc import Sequence
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
    scene: np.ndarray | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """`times` are in frames of `rate`; frame `at` has the colour GREY[at] whatever its time."""
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
        if rotation:
            stream.set_display_rotation(rotation)
        for at, time in enumerate(range(num_frames) if times is None else times):
            pixels = paint(GREY[at], size) if scene is None else scene
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def paint(grey: int, size: tuple[int, int]) -> np.ndarray:
    return np.full((size[1], size[0], 3), grey, dtype=np.uint8)


def sound(container: str = "mp4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac" if container == "mp4" else "libopus", rate=48_000)
        for at in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), layout="mono")
            frame.sample_rate, frame.pts = 48_000, at * 960
            output.mux(stream.encode(frame))
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
