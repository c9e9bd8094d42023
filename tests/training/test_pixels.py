"""Pictures and films as training reads them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flamingo_model.media import Transform
from flamingo_model.training.data.document import BadRecord, MediaPart
from flamingo_model.training.pixels import Frames, augment, read_media, recolour
from training.made import dataset, encoded, film, picture

TRANSFORM = Transform("pad", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def read(part: MediaPart, **options: int) -> Frames:
    return read_media(part, TRANSFORM, dataset(**options), "a.jsonl:3")


def test_a_picture_is_a_film_of_one_frame() -> None:
    assert read(MediaPart("image", picture(1))).shape == (1, 16, 16, 3)


def test_a_film_is_read_at_its_dataset_s_rate_and_to_its_length() -> None:
    part = MediaPart("video", film(1, 6))
    assert len(read(part)) == 6 and len(read(part, max_frames=3)) == 3
    assert len(read(part, max_frames=20, fps=2)) == 12


@pytest.mark.parametrize(
    "part",
    [
        MediaPart("image", b""),
        MediaPart("image", b"no picture"),
        MediaPart("image", picture(1)[:60]),
        MediaPart("video", b"no film"),
    ],
)
def test_what_cannot_be_read_is_a_bad_record_with_its_place(part: MediaPart) -> None:
    with pytest.raises(BadRecord, match=r"a.jsonl:3: .*(no picture|cut off|not a film)"):
        read(part)


def test_a_picture_too_large_to_be_one_is_refused_before_it_is_decoded() -> None:
    huge = encoded(Image.new("1", (8_000, 8_000)), "PNG")
    with pytest.raises(BadRecord, match="is over 50,000,000 pixels"):
        read(MediaPart("image", huge))


def test_a_film_beyond_the_limits_is_a_bad_record_with_its_place() -> None:
    long = encoded(
        Image.new("L", (8, 8)), "WEBP", append_images=[Image.new("L", (8, 8), 9)], duration=301_000
    )
    with pytest.raises(BadRecord, match=r"a.jsonl:3: The film runs 602.0 s; the limit is 600 s"):
        read(MediaPart("video", long))


def test_without_augmentation_nothing_changes() -> None:
    frames = read(MediaPart("image", picture(1)))
    assert np.array_equal(augment(frames, dataset(), np.random.default_rng(0)), frames)


def test_half_of_the_media_are_flipped_all_frames_of_a_film_alike() -> None:
    frames = read(MediaPart("video", film(1, 3)))
    flips, settings = 0, dataset(augment=("flip",))
    for seed in range(40):
        changed = augment(frames, settings, np.random.default_rng(seed))
        is_flipped = np.array_equal(changed, frames[:, :, ::-1])
        assert is_flipped or np.array_equal(changed, frames)
        flips += is_flipped
    assert 10 < flips < 30


def test_colours_change_a_little_and_stay_colours() -> None:
    frames = read(MediaPart("image", picture(1)))
    changed = augment(frames, dataset(augment=("colour",)), np.random.default_rng(0))
    assert changed.dtype == np.uint8 and not np.array_equal(changed, frames)
    assert np.abs(changed.astype(int) - frames).mean() < 64


def test_brightness_contrast_and_saturation_are_what_they_say() -> None:
    frames = np.array([[[[100, 50, 0], [200, 150, 100]]]], dtype=np.uint8)
    assert np.array_equal(recolour(frames, 1, 1, 1), frames)
    assert recolour(frames, 0.5, 1, 1).max() == 100
    assert len(np.unique(recolour(frames, 1, 0, 1))) == 1
    grey = recolour(frames, 1, 1, 0)
    assert np.array_equal(grey, np.repeat(grey[..., :1], 3, -1)) and grey[0, 0, 0, 0] == 59
