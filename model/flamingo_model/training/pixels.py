"""Encoded pictures and films → pixels, changed a little where the dataset wants it."""

from __future__ import annotations

from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..film import FilmLimits, FilmOptions, read_frames
from ..media import Transform, to_pixels
from .config import DatasetConfig
from .data.document import BadRecord, MediaPart

Frames: TypeAlias = "NDArray[np.uint8]"
LIMITS = FilmLimits()
STRENGTH = 0.2  # the most that colours are changed by, as a share
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def read_media(part: MediaPart, transform: Transform, dataset: DatasetConfig, place: str) -> Frames:
    """uint8 [T, size, size, 3]; a picture is one frame. Raises BadRecord."""
    try:
        if part.kind == "video":
            options = FilmOptions(dataset.fps, dataset.max_frames)
            return read_frames(part.data, transform, options, LIMITS).pixels
        with Image.open(BytesIO(part.data)) as picture:
            LIMITS.check_pixels(*picture.size)
            return to_pixels(picture, transform)[None]
    except MemoryError:
        raise
    except Exception as error:  # decoders meet anybody's bytes, and have many names for damage
        raise BadRecord(f"{place}: a {part.kind} cannot be read: {error}") from error


def augment(frames: Frames, dataset: DatasetConfig, rng: np.random.Generator) -> Frames:
    """Flips half of the media, and changes brightness, contrast and saturation of all (paper,
    section B.2.1); all frames of a film alike."""
    if "flip" in dataset.augment and rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if "colour" in dataset.augment:
        frames = recolour(frames, *rng.uniform(1 - STRENGTH, 1 + STRENGTH, size=3).tolist())
    return np.ascontiguousarray(frames)


def recolour(frames: Frames, brightness: float, contrast: float, saturation: float) -> Frames:
    values = frames.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = (values @ LUMA)[..., None]
    changed: Frames = np.clip(grey + (values - grey) * saturation, 0, 255).astype(np.uint8)
    return changed
