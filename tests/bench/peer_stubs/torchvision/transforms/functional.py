"""torchvision's transforms of PIL pictures, as plain functions."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resize(picture: Image.Image, size: int, interpolation: Image.Resampling) -> Image.Image:
    """The shorter edge becomes `size`, the longer one keeps the shape, rounded down."""
    width, height = picture.size
    short, long = sorted((width, height))
    other = int(size * long / short)
    return picture.resize((size, other) if width <= height else (other, size), interpolation)


def center_crop(picture: Image.Image, size: int) -> Image.Image:
    left, top = (round((edge - size) / 2) for edge in picture.size)
    return picture.crop((left, top, left + size, top + size))


def to_tensor(picture: Image.Image) -> Tensor:
    """[3, H, W], from 0 to 1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shape = (-1, 1, 1)
    return (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
