"""Encoded pictures and films → pixels, changed a little where the dataset wants it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..film import FilmOptions
from ..media import Transform
from .config import DatasetConfig
from .data.document import BadRecord, MediaPart
from .data.media import frames
from .data.problems import Problem

Frames: TypeAlias = "NDArray[np.uint8]"
STRENGTH = 0.2  # the most that colours are changed by, as a share
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def read_media(part: MediaPart, transform: Transform, dataset: DatasetConfig, place: str) -> Frames:
    """uint8 [T, size, size, 3]; a picture is one frame. Raises BadRecord."""
    try:
        return frames(part, transform, FilmOptions(dataset.fps, dataset.max_frames))
    except Problem as problem:
        raise BadRecord(f"{place}: {problem}") from problem


def augment(pixels: Frames, dataset: DatasetConfig, rng: np.random.Generator) -> Frames:
    """Flips half of the media, and changes brightness, contrast and saturation of all (paper,
    section B.2.1); all frames of a film alike."""
    if "flip" in dataset.augment and rng.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    if "colour" in dataset.augment:
        pixels = recolour(pixels, *rng.uniform(1 - STRENGTH, 1 + STRENGTH, size=3).tolist())
    return np.ascontiguousarray(pixels)


def recolour(pixels: Frames, brightness: float, contrast: float, saturation: float) -> Frames:
    values = pixels.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = (values @ LUMA)[..., None]
    changed: Frames = np.clip(grey + (values - grey) * saturation, 0, 255).astype(np.uint8)
    return changed
