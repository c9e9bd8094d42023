"""What one picture or film may cost, and the error it gets when it costs more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flamingo_model.film import FilmLimits, FilmOptions
from flamingo_server.errors import TooLarge

MIB = 2**20
TOO_LARGE = {"picture": "image_too_large", "film": "film_too_large"}  # error codes


@dataclass(frozen=True)
class MediaLimits:
    """Ceilings for one picture or film, all of them checked before the cost is paid.

    `max_media_bytes` counts the encoded file, `max_pixels` width × height of one frame,
    `max_frames` the frames of an animation, `decode_timeout_s` seconds inside a worker,
    `max_film_seconds` how long a film runs, `max_film_frames` the frames taken from it.
    """

    max_media_bytes: int = 20 * MIB
    max_pixels: int = 50_000_000
    max_frames: int = 512
    decode_timeout_s: float = 10.0
    max_film_seconds: float = 600.0
    max_film_frames: int = 64

    def check_bytes(self, num_bytes: int, noun: str = "picture") -> None:
        """Raises `TooLarge` for an encoded file over `max_media_bytes`."""
        if num_bytes > self.max_media_bytes:
            actual, limit = human_bytes(num_bytes), human_bytes(self.max_media_bytes)
            message = f"The {noun} is {actual}; the limit is {limit}. Send a smaller file."
            raise TooLarge(message, code="media_too_many_bytes")

    def check_pixels(self, width: int, height: int, noun: str = "picture") -> None:
        """Raises `TooLarge` for a frame over `max_pixels`."""
        if width * height > self.max_pixels:
            message = (
                f"The {noun} is {width:,} x {height:,} = {width * height:,} pixels; "
                f"the limit is {self.max_pixels:,} pixels. Scale it down before sending."
            )
            raise TooLarge(message, code=TOO_LARGE[noun])

    def check_frames(self, num_frames: int) -> None:
        """Raises `TooLarge` for an animation over `max_frames`.

        Counting may stop at the first frame too many, so the message promises no total.
        """
        if num_frames > self.max_frames:
            message = (
                f"The animation has {num_frames:,} frames or more; the limit is "
                f"{self.max_frames:,}. Only the first is read: send that one as a still picture."
            )
            raise TooLarge(message, code="too_many_frames")

    def check_film(self, options: FilmOptions) -> None:
        """Raises `TooLarge` where more frames are wanted of a film than `max_film_frames`."""
        if options.max_frames > self.max_film_frames:
            message = (
                f"{options.max_frames:,} frames are more than a film may have here: set "
                f"max_frames to {self.max_film_frames:,} or less."
            )
            raise TooLarge(message, code="too_many_frames")

    def of_animation(self) -> FilmLimits:
        """For animations, whose frames all have to be decoded to get at one."""
        return FilmLimits(self.max_film_seconds, self.max_pixels, self.max_frames)

    def of_video(self) -> FilmLimits:
        return FilmLimits(self.max_film_seconds, self.max_pixels)


def human_bytes(num_bytes: int) -> str:
    """Rounded up, so that a file just over a limit never reads as equal to it."""
    if num_bytes < MIB:
        return f"{num_bytes:,} bytes"
    return f"{math.ceil(num_bytes * 10 / MIB) / 10:,g} MiB"
