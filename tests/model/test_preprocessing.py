"""Published families' squares equal what their reference code makes of the same pictures."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from flamingo_model.media import Transform, to_pixels

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"
PICTURES = sorted(path.stem for path in (GOLDEN / "images").iterdir())
RECORDED = {
    "clip_resize_then_rgb": "open_clip",
    "clip": "flamingo_mini",
    "squash": "idefics",
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = [
    (640, 480),
    (427, 640),
    (640, 427),
    (1, 40),
    (40, 1),
    (3, 50),
    (37, 61),
    (32, 32),
    (33, 95),
]
OPAQUE = ["RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I;16B", "I", "F", "RGBX"]


def transform(kind: str, size: int = 32) -> Transform:
    return Transform(kind, size, MEAN, STD)


def noise(mode: str, size: tuple[int, int] = (45, 61)) -> Image.Image:
    rng = np.random.default_rng(sum(size))
    width, height = size
    if mode.startswith("I") or mode == "F":
        values = rng.integers(0, 600, (height, width))
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
        return Image.frombytes(mode, size, values.astype(kind).tobytes())
    if mode == "P":
        return noise("RGB", size).quantize(16)
    if mode == "1":
        return noise("L", size).convert("1")
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, rng.integers(0, 256, width * height * bands, "u1").tobytes())


def by_transformers(kind: str, picture: Image.Image, size: int = 32) -> NDArray[np.uint8]:
    """The uint8 square inside transformers' own processors: they are asked not to normalise."""
    options = {"do_rescale": False, "do_normalize": False}
    if kind == "squash":
        squashed = IdeficsImageProcessorPil(image_size=size, **options)(picture)
        return np.asarray(squashed[0], dtype=np.uint8).transpose(1, 2, 0)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **options
    )
    return np.asarray(processor(picture)["pixel_values"][0], dtype=np.uint8).transpose(1, 2, 0)


def by_torchvision(picture: Image.Image, size: int) -> Image.Image:
    """`Resize(size, BICUBIC)`, `CenterCrop(size)`, `convert("RGB")`: torchvision's arithmetic."""
    width, height = picture.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = picture.resize(new, Image.Resampling.BICUBIC)
    image_width, image_height = resized.size
    crop_top = int(round((image_height - size) / 2.0))
    crop_left = int(round((image_width - size) / 2.0))
    box = (crop_left, crop_top, crop_left + size, crop_top + size)
    return resized.crop(box).convert("RGB")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(("kind", "file"), RECORDED.items())
def test_golden_pictures_give_the_recorded_pixels(kind: str, file: str, name: str) -> None:
    recorded = np.load(GOLDEN / f"{file}.npz")[name]  # float32 [3, 32, 32]
    with Image.open(GOLDEN / "images" / f"{name}.png") as picture:
        pixels = to_pixels(picture, transform(kind))
    scaled = recorded.transpose(1, 2, 0).astype(np.float64) * STD + MEAN
    assert (np.rint(scaled * 255).astype(np.uint8) == pixels).all()
    assert np.abs(transform(kind).normalise(pixels) - recorded).max() <= 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["clip", "squash"])
def test_every_shape_is_as_in_transformers(kind: str, size: tuple[int, int]) -> None:
    picture = noise("RGB", size)
    assert (to_pixels(picture, transform(kind)) == by_transformers(kind, picture)).all()


@pytest.mark.parametrize("mode", OPAQUE)
@pytest.mark.parametrize("kind", ["clip", "squash"])
def test_every_opaque_mode_is_as_in_transformers(kind: str, mode: str) -> None:
    picture = noise(mode)
    assert (to_pixels(picture, transform(kind)) == by_transformers(kind, picture)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_idefics_lays_transparency_on_white_as_transformers_does(mode: str) -> None:
    picture = noise(mode)
    assert (to_pixels(picture, transform("squash")) == by_transformers("squash", picture)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_clip_drops_transparency_as_transformers_4_did(mode: str) -> None:
    picture = noise(mode)
    opaque = picture.convert("RGB")
    assert (to_pixels(picture, transform("clip")) == by_transformers("clip", opaque)).all()


@pytest.mark.parametrize("mode", [*OPAQUE, "RGBA", "LA", "PA"])
@pytest.mark.parametrize("size", SIZES)
def test_open_clip_resizes_every_mode_before_rgb(mode: str, size: tuple[int, int]) -> None:
    picture = noise(mode, size)
    expected = np.asarray(by_torchvision(picture, 32))
    assert (to_pixels(picture, transform("clip_resize_then_rgb")) == expected).all()


def test_the_crops_of_open_clip_and_transformers_differ_by_a_pixel_at_427_by_640() -> None:
    picture = noise("RGB", (427, 640))  # 224 x 335: the margin is 111, which halves to 55 or 56
    ours = to_pixels(picture, transform("clip_resize_then_rgb", 224))
    theirs = to_pixels(picture, transform("clip", 224))
    assert (ours[:-1] == theirs[1:]).all() and (ours != theirs).any()


@pytest.mark.parametrize("margin", range(9))
def test_margins_are_rounded_as_each_reference_does(margin: int) -> None:
    column = np.arange(8 + margin, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(3, 2)
    picture = Image.fromarray(column)
    assert to_pixels(picture, transform("clip", 8))[0, 0, 0] == margin // 2
    assert to_pixels(picture, transform("clip_resize_then_rgb", 8))[0, 0, 0] == round(margin / 2)


@pytest.mark.parametrize("kind", ["clip", "clip_resize_then_rgb"])
@pytest.mark.parametrize("size", [(1, 2200), (2201, 1), (3, 7001), (9000, 2)])
def test_the_middle_of_a_thread_is_that_of_the_whole(kind: str, size: tuple[int, int]) -> None:
    picture = noise("RGB", size)
    whole = np.asarray(by_torchvision(picture, 32)) if kind != "clip" else None
    whole = by_transformers(kind, picture) if whole is None else whole
    assert np.abs(to_pixels(picture, transform(kind)).astype(int) - whole).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDED)
def test_a_thread_of_50_million_pixels_costs_no_more_than_itself(kind: str) -> None:
    picture = Image.new("L", (50_000_000, 1), 7)
    assert (to_pixels(picture, transform(kind, 224)) == 7).all()


@pytest.mark.parametrize("kind", RECORDED)
def test_published_families_leave_orientation_alone(kind: str) -> None:
    picture = noise("RGB")
    before = to_pixels(picture, transform(kind))
    picture.getexif()[0x0112] = 6
    assert (to_pixels(picture, transform(kind)) == before).all()


@pytest.mark.parametrize("kind", RECORDED)
def test_the_picture_given_is_not_changed(kind: str) -> None:
    picture = noise("RGBA")
    before = picture.copy()
    to_pixels(picture, transform(kind))
    assert picture == before
