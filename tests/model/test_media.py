"""Pictures of every mode become the same upright RGB square, and digests tell squares apart."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flamingo_model.media import Transform, media_digest, to_pixels, to_rgb, upright_size

HALF = Transform("pad", 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLIP = Transform("pad", 8, (0.48145466, 0.4578275, 0.40821073), (0.268, 0.261, 0.275))


def only_colour(picture: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(to_rgb(picture)).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return tuple(pixels[0].tolist())


def with_orientation(picture: Image.Image, orientation: int) -> Image.Image:
    picture.getexif()[0x0112] = orientation
    return picture


def test_a_wide_picture_gets_mean_bars_above_and_below() -> None:
    pixels = to_pixels(Image.new("RGB", (40, 20), "red"), CLIP)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert (pixels[2:6] == (255, 0, 0)).all()
    assert (pixels[:2] == (123, 117, 104)).all() and (pixels[6:] == (123, 117, 104)).all()


def test_a_tall_picture_gets_mean_bars_left_and_right() -> None:
    pixels = to_pixels(Image.new("RGB", (3, 6), "red"), HALF)
    assert (pixels[:, 2:6] == (255, 0, 0)).all()
    assert (pixels[:, :2] == 128).all() and (pixels[:, 6:] == 128).all()


def test_a_square_of_the_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (to_pixels(Image.fromarray(noise), HALF) == noise).all()


def test_a_thread_of_a_picture_keeps_one_pixel() -> None:
    pixels = to_pixels(Image.new("RGB", (1000, 1), "red"), HALF)
    assert (pixels[3] == (255, 0, 0)).all() and (pixels[4] == 128).all()


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 0xFFFF, (255, 255, 255)),
        ("I;16", 0x80FF, (128, 128, 128)),
        ("I;16B", 0x8000, (128, 128, 128)),
        ("I", 70000, (255, 255, 255)),
        ("I", -5, (0, 0, 0)),
        ("F", 300.0, (255, 255, 255)),
        ("F", float("nan"), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(
    mode: str, colour: float | tuple[int, ...], rgb: tuple[int, int, int]
) -> None:
    assert only_colour(Image.new(mode, (2, 2), colour)) == rgb


def test_a_transparent_palette_entry_becomes_white() -> None:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([9, 9, 9, 1, 2, 3])
    assert only_colour(picture) == (1, 2, 3)
    picture.info["transparency"] = 1
    assert only_colour(picture) == (255, 255, 255)


def test_a_transparent_16_bit_grey_becomes_white() -> None:
    picture = Image.new("I;16", (2, 2), 500)
    picture.info["transparency"] = 500
    assert only_colour(picture) == (255, 255, 255)


def test_a_mode_without_a_way_to_rgb_is_refused() -> None:
    with pytest.raises(ValueError):
        to_rgb(Image.new("La", (2, 2)))


def test_orientation_undoes_what_a_camera_did() -> None:
    scene = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    stored = with_orientation(scene.transpose(Image.Transpose.ROTATE_90), 6)
    assert stored.size == (2, 4) and upright_size(stored) == (4, 2)
    assert (np.asarray(to_rgb(stored)) == np.asarray(scene)).all()


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_out_of_range_is_ignored(orientation: int) -> None:
    assert upright_size(with_orientation(Image.new("RGB", (4, 2)), orientation)) == (4, 2)


def test_garbage_for_exif_leaves_the_picture_as_it_is() -> None:
    picture = Image.new("RGB", (4, 2), "red")
    picture.info["exif"] = b"Exif\x00\x00II\x2a\x00\xff\xff\xff\xffgarbage"
    assert upright_size(picture) == (4, 2) and only_colour(picture) == (255, 0, 0)


def test_the_picture_given_is_not_changed() -> None:
    picture = with_orientation(Image.new("RGBA", (4, 2), (1, 2, 3, 4)), 6)
    to_pixels(picture, HALF)
    assert picture.size == (4, 2) and picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 4


def test_normalise_moves_channels_first_and_scales() -> None:
    film = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    film[..., 0] = 255
    numbers = HALF.normalise(film)
    assert numbers.shape == (2, 3, 4, 5) and numbers.dtype == np.float32
    assert (numbers[:, 0] == 2).all() and (numbers[:, 1:] == -2).all()


def test_version_tells_transforms_apart_and_stays() -> None:
    other = Transform("pad", 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.5))
    assert HALF.version == "pad/1/8/0.5,0.5,0.5/0.25,0.25,0.25"
    assert len({HALF.version, CLIP.version, other.version}) == 3


def test_digest_differs_by_shape_transform_and_pixel() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    touched = pixels.copy()
    touched[3, 5, 2] = 1
    digests = {
        media_digest(pixels, HALF),
        media_digest(pixels.reshape(6, 4, 3), HALF),
        media_digest(pixels[None], HALF),
        media_digest(pixels, CLIP),
        media_digest(touched, HALF),
    }
    assert len(digests) == 5 and all(len(digest) == 64 for digest in digests)


def test_digest_does_not_see_memory_layout() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert media_digest(np.asfortranarray(pixels), HALF) == media_digest(pixels, HALF)


def test_digest_refuses_what_are_not_pixels() -> None:
    with pytest.raises(ValueError, match="uint8"):
        media_digest(np.zeros((4, 4, 3), dtype=np.float32), HALF)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "size", "std"), [("squeeze", 8, 0.5), ("pad", 0, 0.5), ("pad", 8, 0.0)]
)
def test_a_transform_that_cannot_work_is_refused(kind: str, size: int, std: float) -> None:
    with pytest.raises(ValueError):
        Transform(kind, size, (0.5, 0.5, 0.5), (std, 0.5, 0.5))


def test_importing_it_imports_no_torch() -> None:
    question = "import sys, flamingo_model.media; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    assert answer.stdout.strip() == "False"
