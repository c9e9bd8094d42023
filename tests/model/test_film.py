"""Films whose every frame has a grey of its own: which frames come back, and at what cost."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from films import GREY, animation, film, moving, shorten, sound
from flamingo_model.film import (
    DamagedFilm,
    Film,
    FilmLimits,
    FilmOptions,
    FilmsUnavailable,
    FilmTooLarge,
    NotAFilm,
    pick,
    read_frames,
)
from flamingo_model.media import Transform

TRANSFORM = Transform("squash", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
KINDS = [
    ("libx264", "mp4"),
    ("libx264", "mov"),
    ("libx264", "matroska"),
    ("mpeg4", "mp4"),
    ("libvpx-vp9", "webm"),
    ("libvpx", "webm"),
]


def read(data: bytes, fps: float = 1.0, max_frames: int = 64, sampling: str = "rate") -> Film:
    return read_frames(data, TRANSFORM, FilmOptions(fps, max_frames, sampling))  # type: ignore[arg-type]


def places(pixels: np.ndarray) -> list[int]:
    """Which frame of the film each square is, by its grey: up to 73 are told apart."""
    greys = pixels.reshape(len(pixels), -1).mean(1)
    return [int(np.abs(np.array(GREY[:73]) - grey).argmin()) for grey in greys]


@pytest.mark.parametrize(("codec", "container"), KINDS)
def test_frames_come_at_the_rate_asked_for(codec: str, container: str) -> None:
    taken = read(film(codec, container, num_frames=35), fps=2)
    assert places(taken.pixels) == [0, 5, 10, 15, 20, 25, 30]
    assert taken.times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3], abs=1e-3)
    assert (taken.num_frames, taken.width, taken.height) == (35, 32, 32)
    assert taken.duration == pytest.approx(3.5, abs=0.01)
    assert taken.pixels.shape == (7, 16, 16, 3) and taken.pixels.dtype == np.uint8


@pytest.mark.parametrize(("codec", "container"), KINDS)
def test_all_frames_come_in_order_at_the_films_own_rate(codec: str, container: str) -> None:
    taken = read(film(codec, container, num_frames=33), fps=10)
    assert places(taken.pixels) == list(range(33)) and taken.num_decoded < 45


def test_the_frame_taken_is_the_one_on_view_not_the_nearest() -> None:
    taken = read(film(times=[0, 9, 11, 25, 26]), fps=1)  # at 0, 0.9, 1.1, 2.5 and 2.6 seconds
    assert places(taken.pixels) == [0, 1, 2] and taken.times == pytest.approx([0, 0.9, 1.1])


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_variable_frame_rate_keeps_its_times(container: str) -> None:
    times = [0, 1, 2, 3, 20, 21, 40, 47, 48, 49]
    taken = read(film(container=container, times=times), fps=1)
    assert places(taken.pixels) == [0, 3, 4, 5, 6] and taken.num_frames == 10


def test_a_rate_above_the_films_repeats_frames() -> None:
    taken = read(film(num_frames=4, rate=2), fps=4)
    assert places(taken.pixels) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_thirty_frames_a_second_hit_their_thirds_though_webm_rounds_to_milliseconds() -> None:
    taken = read(film("libvpx", "webm", num_frames=60, rate=30), fps=3)
    assert places(taken.pixels) == [0, 10, 20, 30, 40, 50]


def test_more_moments_than_allowed_are_spread_over_the_whole_film() -> None:
    taken = read(film(num_frames=40), fps=10, max_frames=4)
    assert places(taken.pixels) == [0, 10, 20, 30]


def test_uniform_sampling_steps_as_otter_does() -> None:
    assert places(read(film(num_frames=39), max_frames=16, sampling="uniform").pixels) == [
        2 * at for at in range(16)
    ]
    assert places(read(film(num_frames=5), max_frames=16, sampling="uniform").pixels) == [*range(5)]


def test_sparse_sampling_of_a_long_film_decodes_few_frames() -> None:
    data = film(num_frames=1200, gop=30)
    taken = read(data, fps=1 / 20)
    assert places(taken.pixels) == [200 * at % 73 for at in range(6)]
    assert taken.num_frames == 1200 and taken.num_decoded < 6 * 30


@pytest.mark.parametrize("gop", [1, 7, 250])
def test_sparse_sampling_gives_the_frames_dense_sampling_gives(gop: int) -> None:
    data = film(num_frames=60, gop=gop)
    every = read(data, fps=10)
    for fps in (0.3, 1.5, 3.0):
        sparse = read(data, fps=fps)
        positions = [round(time * 10) for time in sparse.times]
        assert (sparse.pixels == every.pixels[positions]).all()


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("params", ["open-gop=1:bframes=5", "intra-refresh=1"])
def test_key_frames_that_do_not_stand_alone_mislead_nobody(container: str, params: str) -> None:
    encoder = {"x264-params": f"keyint=10:scenecut=0:{params}"}
    data = film(container=container, num_frames=60, scene=moving, encoder=encoder)
    every = read(data, fps=10)
    for fps in (0.3, 0.7, 1.3):
        sparse = read(data, fps=fps)
        positions = [round(time * 10) for time in sparse.times]
        assert (sparse.pixels == every.pixels[positions]).all()


def test_a_film_with_sound_is_its_pictures() -> None:
    assert places(read(film(with_sound=True)).pixels) == [0, 10, 20]


def test_a_film_whose_start_was_cut_away_begins_where_a_player_does() -> None:
    taken = read(shorten(film(num_frames=40), 13), fps=10)
    assert places(taken.pixels) == list(range(13, 40)) and taken.times[0] == 0
    assert taken.duration == pytest.approx(2.7)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_film_held_sideways_is_turned(rotation: int) -> None:
    taken = read(film(size=(64, 32), rotation=rotation))
    assert (taken.width, taken.height) == ((64, 32) if rotation == 180 else (32, 64))


def test_rotation_turns_the_way_a_viewer_does() -> None:
    scene = np.zeros((16, 32, 3), np.uint8)
    scene[:, :16] = 255  # white on the left, which a quarter counterclockwise brings to the bottom
    (square,) = read(film(size=(32, 16), num_frames=1, rotation=90, scene=lambda at: scene)).pixels
    assert square[12:].min() > 200 and square[:4].max() < 50


def test_colours_survive() -> None:
    scene = np.full((32, 32, 3), (200, 30, 90), np.uint8)
    (square,) = read(film(num_frames=1, scene=lambda at: scene)).pixels
    assert np.abs(square.astype(int) - (200, 30, 90)).max() < 6


def test_a_frame_of_odd_sides_is_read() -> None:
    taken = read(film("libvpx", "webm", size=(33, 17)))
    assert places(taken.pixels) == [0, 10, 20] and (taken.width, taken.height) == (33, 17)


def test_a_film_that_starts_late_starts_at_nought() -> None:
    taken = read(film("libvpx", "webm", times=range(25, 55)))
    assert places(taken.pixels) == [0, 10, 20] and taken.times[0] == 0


def test_a_film_of_one_frame_is_that_frame() -> None:
    taken = read(film(num_frames=1), fps=5)
    assert places(taken.pixels)[0] == 0 and taken.num_frames == 1


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_animations_keep_their_durations(file_format: str) -> None:
    data = animation(file_format, [500, 1000, 100, 400, 2000])
    taken = read(data, fps=2)
    assert places(taken.pixels) == [0, 1, 1, 2, 4, 4, 4, 4]
    assert taken.duration == 4 and taken.num_frames == 5 and taken.format == file_format


def test_animations_without_durations_run_at_ten_a_second() -> None:
    assert read(animation("GIF", [0] * 5)).duration == 0.5


def test_animations_are_sampled_uniformly_too() -> None:
    taken = read(animation("PNG", [100] * 8), max_frames=4, sampling="uniform")
    assert places(taken.pixels) == [0, 2, 4, 6]


def test_a_still_picture_is_a_film_of_one_frame() -> None:
    taken = read(animation("PNG", [100]))
    assert len(taken.pixels) == 1 and taken.duration == 0


@pytest.mark.parametrize(
    "limits",
    [FilmLimits(max_seconds=2.5), FilmLimits(max_pixels=1000), FilmLimits(max_frames=29)],
)
@pytest.mark.parametrize("make", [film, lambda: animation("PNG", [100] * 30, (32, 32))])
def test_films_over_a_limit_are_refused_with_figures(make, limits: FilmLimits) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FilmTooLarge, match=r"the limit is (2.5|1,000|29)"):
        read_frames(make(), TRANSFORM, FilmOptions(), limits)


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_sound_alone_is_no_film(container: str) -> None:
    with pytest.raises(NotAFilm, match="only sound"):
        read(sound(container))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 100,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile a.mp4\n",
        b"RIFF\x24\0\0\0AVI LIST",
        b"<svg/>",
    ],
)
def test_what_is_no_film_is_not_tried_with_other_demuxers(data: bytes) -> None:
    with pytest.raises(NotAFilm, match="MP4, MOV, WebM"):
        read(data)


@pytest.mark.parametrize("data", [b"\x1a\x45\xdf\xa3", b"\0\0\0\x08ftyp", b"\0\0\0\x20ftypisom"])
def test_a_header_alone_is_damaged(data: bytes) -> None:
    with pytest.raises(DamagedFilm):
        read(data)


def test_a_codec_off_the_list_is_refused() -> None:
    with pytest.raises(NotAFilm, match="codec"):
        read(film("ffv1", "matroska"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("index_first", [False, True])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_a_film_cut_off_says_so(container: str, index_first: bool, share: float) -> None:
    options = {"moov_size": "5000"} if index_first and container == "mp4" else {}
    codec = "libx264" if container == "mp4" else "libvpx"
    data = film(codec, container, options=options)
    with pytest.raises(DamagedFilm, match="whole file"):
        read(data[: int(len(data) * share)])


def test_a_fragmented_film_is_read() -> None:
    data = film(options={"movflags": "frag_keyframe+empty_moov"})
    assert places(read(data, fps=2).pixels) == [0, 5, 10, 15, 20, 25]


def test_a_live_recording_of_unknown_length_is_read() -> None:
    data = film("libvpx", "webm", options={"live": "1"})
    assert places(read(data).pixels) == [0, 10, 20]


@pytest.mark.parametrize(("codec", "container"), KINDS)
def test_a_mutant_gives_frames_or_an_error_of_ours(codec: str, container: str) -> None:
    data, rng = film(codec, container, num_frames=12), np.random.default_rng(3)
    for _ in range(40):
        mutant = bytearray(data)
        for at in rng.integers(0, len(mutant), 4):
            mutant[at] = rng.integers(0, 256)
        try:
            assert read(bytes(mutant), fps=5).pixels.shape[1:] == (16, 16, 3)
        except (NotAFilm, DamagedFilm, FilmTooLarge, MemoryError):
            pass


@pytest.mark.parametrize("change", [{"fps": 0}, {"fps": float("inf")}, {"max_frames": 0}])
def test_options_that_cannot_work_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        FilmOptions(**change)  # type: ignore[arg-type]


def test_an_unknown_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling"):
        FilmOptions(sampling="random")  # type: ignore[arg-type]


def test_rates_are_exact_over_an_hour() -> None:
    starts = [Fraction(at, 10) for at in range(36_000)]
    picked = pick(starts, Fraction(3600), FilmOptions(0.1, 1000))
    assert picked == list(range(0, 36_000, 100))


def test_without_pyav_animations_are_read_and_videos_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = film(num_frames=2)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "flamingo_model.video", raising=False)
    monkeypatch.delattr("flamingo_model.video", raising=False)
    assert len(read(animation(), fps=10).pixels) == 8
    with pytest.raises(FilmsUnavailable, match="av"):
        read(data)


def test_importing_it_imports_neither_torch_nor_pyav() -> None:
    question = "import sys, flamingo_model.film as f; print({'torch', 'av'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    assert answer.stdout.strip() == "set()"
