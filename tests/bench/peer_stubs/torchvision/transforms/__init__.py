"""What `open_clip.transform` builds its pipelines of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from . import functional

InterpolationMode = Image.Resampling


@dataclass
class Compose:
    transforms: list[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value


@dataclass
class Resize:
    size: int
    interpolation: Image.Resampling

    def __call__(self, picture: Image.Image) -> Image.Image:
        return functional.resize(picture, self.size, self.interpolation)


@dataclass
class CenterCrop:
    size: int

    def __call__(self, picture: Image.Image) -> Image.Image:
        return functional.center_crop(picture, self.size)


class ToTensor:
    def __call__(self, picture: Image.Image) -> Tensor:
        return functional.to_tensor(picture)


@dataclass
class Normalize:
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        return functional.normalize(pixels, self.mean, self.std)


class RandomResizedCrop:
    """open_clip always builds the pipeline of training too; nobody here runs it."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __call__(self, picture: Image.Image) -> Image.Image:
        raise NotImplementedError("training needs torchvision itself")
