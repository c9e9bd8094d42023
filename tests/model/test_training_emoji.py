"""The emoji world and its stages, on made-up sprites: no font, no corpus, seconds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flamingo_model.decoder import Decoder
from flamingo_model.flamingo import Flamingo
from flamingo_model.training.config import TrainConfig
from flamingo_model.training.emoji import contrastive, curves, drawings, language, multimodal, tasks
from flamingo_model.training.emoji.__main__ import ALIGNMENT, Run
from flamingo_model.training.emoji.alignment import Said, alignment_losses, told
from flamingo_model.training.emoji.documents import (
    Encoder,
    Example,
    held_out_word,
    made_up_words,
)
from flamingo_model.training.emoji.exam import make_exam
from flamingo_model.training.emoji.pictures import Pool, PoolBuilder, PoolGallery, Sizes, describe
from flamingo_model.training.emoji.seeded import SeededStage
from flamingo_model.training.emoji.standins import (
    CODE_DIM,
    FACTS,
    StandIns,
    TextGallery,
    at_tokens,
    stand_in_tensors,
)
from flamingo_model.training.emoji.tasks import Shown, Tasks
from flamingo_model.training.emoji.world import (
    MOTIONS,
    Film,
    Scene,
    Sprites,
    empty_scene,
    random_pair,
    random_scene,
    render_film,
    render_scene,
)
from tiny import tiny_config, tiny_tokenizer

LINES = ["fox: a wild animal.", "moon: what shines at night.", "cake: sweet and baked."] * 20
NAMES = ("fox", "moon", "cake", "drum", "bell", "axe")
CONFIG = replace(tiny_config(), vision=replace(tiny_config().vision, image_size=64))
SIZES = Sizes(3, 2, 0, counted=24, pairs=12, films=6, empty=4)
QUICK = TrainConfig(steps=4, rate=1e-3, evaluate_every=4)


def sprites(num: int = 150) -> Sprites:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, 72, 72, 4), dtype=np.uint8)
    return Sprites(images, tuple(f"thing{i}" for i in range(num)))


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(tiny_tokenizer())


def test_no_family_is_both_trained_and_tested() -> None:
    named = Sprites(sprites(6).images, ("red heart", "blue heart", "fox", "axe", "egg", "bell"))
    families = {named.names[i].split()[-1] for i in named.training()}
    assert not families & {named.names[i].split()[-1] for i in named.test()}


def test_words_of_the_exam_are_never_trained() -> None:
    rng = np.random.default_rng(0)
    assert not any(held_out_word(word) for word in made_up_words(50, rng))
    assert all(held_out_word(word) for word in made_up_words(50, rng, held_out=True))


@pytest.mark.parametrize("sprite", [3, 150, 1000])  # an emoji, a letter, a stroke drawing
def test_a_scene_is_the_same_for_the_same_seed_and_another_for_another(sprite: int) -> None:
    scene = random_scene(sprite, np.random.default_rng(1))
    first, again, other = (
        render_scene(scene, sprites(), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_letter_is_a_digit_or_looks_like_one() -> None:
    assert len(set(drawings.letters())) == len(drawings.letters()) > 200
    assert not any(c.isdigit() or c in "OoIlSZ" for c in drawings.letters())


def test_a_background_has_its_colour() -> None:
    pixels = render_scene(Scene(0, background=4), sprites(), np.random.default_rng(0))
    red, _, blue = pixels[0, 0].astype(int)
    assert blue > red + 60


def test_the_first_of_a_pair_lies_left_or_above() -> None:
    plain = np.zeros((2, 72, 72, 4), np.uint8)
    plain[0, ..., 0], plain[1, ..., 1], plain[..., 3] = 255, 255, 255  # red, green
    rng = np.random.default_rng(0)
    for _ in range(8):
        scene = replace(random_pair(0, 1, rng), background=4, texture=0)
        pixels = render_scene(scene, Sprites(plain, ("red", "green")), rng).astype(int)
        red = np.argwhere(pixels[..., 0] > pixels[..., 2] + 120)
        green = np.argwhere(pixels[..., 1] > pixels[..., 2] + 120)
        axis = 1 if scene.layout == "left_right" else 0
        assert red[:, axis].max() < green[:, axis].min()


@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=MOTIONS)
def test_a_film_moves_as_it_says(motion: int) -> None:
    white = np.full((1, 72, 72, 4), 255, np.uint8)
    rng = np.random.default_rng(motion)
    film = Film(Scene(0, background=8), motion, num_frames=6)  # on black
    frames = render_film(film, Sprites(white, ("square",)), rng)
    bright = [np.argwhere(frame.min(-1) > 128) for frame in frames]
    y, x = np.polyfit(range(6), [b.mean(0) for b in bright], 1)[0]
    grows = np.polyfit(range(6), [len(b) ** 0.5 for b in bright], 1)[0]
    trend = {"left": -x, "right": x, "up": -y, "down": y, "larger": grows, "smaller": -grows}
    assert max(trend, key=trend.__getitem__) == MOTIONS[motion]
    assert trend[MOTIONS[motion]] > 1  # pixels a frame


def test_a_label_is_learned_only_once_it_was_shown() -> None:
    assert tasks.in_context_weights([0, 1, 1, 0]) == [0.0, 0.0, 1.0, 1.0]


def test_the_last_of_an_episode_was_shown_before_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        order = tasks.episode_labels(3, 6, rng)
        assert set(order[:-1]) == {0, 1, 2}


def test_captions_and_questions_say_what_is_shown() -> None:
    pair = Shown(("fox", "box"), "blue", layout="above_below")
    assert tasks.caption(pair) == "fox above box on a blue background."
    assert tasks.caption(Shown(("box",), "red", "two")) == "two boxes on a red background."
    assert tasks.what_question(pair, 1)[1] == " box"
    assert tasks.where_question(pair, 0)[1] == " top"
    assert [tasks.yes_no_question(pair, asked)[1] for asked in ("fox", "owl")] == [" yes", " no"]


def test_a_document_reads_picture_prompt_answer_and_end(encoder: Encoder) -> None:
    shown = Shown((), "red")
    tokens = encoder.examples([Example("A", " dax.", shown)], "binding")
    assert tokens.ids[0] == encoder.image
    assert tokens.ids[-1] == encoder.end_of_chunk
    assert tokens.weights == [0.0, 0.0] + [1.0] * 6
    assert tokens.pictures == (shown,)


def text_gallery() -> TextGallery:
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((len(NAMES) + 8, CODE_DIM)).astype(np.float32)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    return TextGallery(NAMES, codes[: len(NAMES)], codes[len(NAMES) :], rng)


def text_world(encoder: Encoder) -> language.TextWorld:
    return language.TextWorld(encoder, LINES, text_gallery(), np.random.default_rng(0))


def test_every_task_is_drawn_from_words_alone(encoder: Encoder) -> None:
    drawn = text_world(encoder).tasks
    assert set(drawn.kinds) == set(language.SHARES) - {"repeat", "recall", "plain"}
    for kind, draw in drawn.kinds.items():
        for _ in range(20):
            examples = draw()
            assert examples, kind
            assert all(example.answer.strip() for example in examples), kind


def test_packed_rows_restart_positions_and_pictures_at_every_document(encoder: Encoder) -> None:
    documents = text_world(encoder).documents()
    rows, shown = language.pack(documents, 3, 80, encoder.image)
    starts = rows["segments"][:, 1:] != rows["segments"][:, :-1]
    assert (rows["positions"][:, 1:][starts] == 0).all()
    assert rows["pictures"].max() < len(shown)
    is_picture = rows["ids"] == encoder.image
    plain = language.KINDS.index("plain")
    assert (rows["pictures"][is_picture] >= 0).all()
    assert (rows["pictures"][rows["kinds"] == plain] == -1).all()


def test_a_stand_in_reaches_the_tokens_that_see_it_and_no_others() -> None:
    gallery = text_gallery()
    pictures = [gallery.shown("fox"), gallery.shown("moon", "cake", layout="left_right")]
    vectors = StandIns(16)(*stand_in_tensors(pictures))
    told = at_tokens(vectors, torch.tensor([[-1, 0, 0, 1]]))
    assert torch.equal(told[0, 0], torch.zeros(16))
    assert torch.equal(told[0, 1:], vectors[torch.tensor([0, 0, 1])])
    assert not torch.equal(vectors[0], vectors[1])


def told_of_everything(num: int) -> tuple[torch.Tensor, Said]:
    """Codes of ten classes, and pictures of one or two of them."""
    torch.manual_seed(0)
    codes = torch.nn.functional.normalize(torch.randn(10, CODE_DIM), dim=1)
    classes = torch.stack([torch.randint(0, 10, (num,)), torch.randint(-1, 10, (num,))], 1)
    facts = [torch.randint(-1 if f == "motion" else 0, len(v), (num,)) for f, v in FACTS.items()]
    return codes, Said(classes, torch.stack(facts, 1))


def test_what_the_stand_ins_say_is_read_back() -> None:
    stand_ins = StandIns(256)
    codes, said = told_of_everything(30)
    vectors = stand_ins(*told(codes, said))
    losses = alignment_losses(stand_ins, codes, vectors.unsqueeze(1), said)
    assert max(loss.item() for loss in losses.values()) < 0.01


def test_what_is_not_told_has_no_loss_and_what_is_told_wrong_has() -> None:
    stand_ins = StandIns(256)
    codes, said = told_of_everything(30)
    vectors = stand_ins(*told(codes, said)).unsqueeze(1)
    silent = replace(said, facts=torch.full_like(said.facts, -1))
    assert alignment_losses(stand_ins, codes, vectors, silent)["background"] == 0
    turned = replace(said, facts=(said.facts + 1) % 3)
    assert alignment_losses(stand_ins, codes, vectors, turned)["background"] > 2


def test_views_of_one_thing_are_nearer_than_views_of_two() -> None:
    gallery = text_gallery()
    for _ in range(20):
        one, other = gallery.classes(2)
        first, again, another = (np.asarray(shown().code)[0] for shown in (one, one, other))
        assert first @ again > first @ another


@torch.no_grad()
def test_words_begin_near_the_codes_of_what_they_name(encoder: Encoder) -> None:
    torch.manual_seed(0)
    decoder = Decoder(replace(CONFIG.decoder, dim=160, num_heads=4, head_dim=32, num_layers=3))
    language.initialise(decoder)
    stand_ins, gallery = StandIns(160), text_gallery()
    before = decoder.embed.weight.clone()
    language.tell_codes(decoder, stand_ins, encoder, gallery.code_of)
    last = encoder.text(" axe")[-1]
    moved = stand_ins.read_code(decoder.embed.weight - before, 0)[last]
    near = {name: float(moved @ torch.from_numpy(code)) for name, code in gallery.code_of.items()}
    named = [name for name in NAMES if last in encoder.text(f" {name}")]
    assert max(near, key=near.__getitem__) in named


def test_the_seeded_circuit_copies_before_any_training(encoder: Encoder) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG.decoder, dim=128, num_heads=4, head_dim=32, num_layers=2)
    decoder = Decoder(config)
    language.initialise(decoder)
    world = text_world(encoder)
    repeats = iter(lambda: world.repeat(), None)
    batch, _ = language.pack(repeats, 8, 100, encoder.image)
    with torch.no_grad():
        _, figures = language.weighted_loss(decoder, batch, torch.zeros(0, 128))
    assert figures["repeat_right"] > 0.2  # chance is 1 in 256


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "PER_STEP", dict.fromkeys(multimodal.PER_STEP, 1))
    monkeypatch.setattr(multimodal, "PICTURES_PER_STEP", 8)
    monkeypatch.setattr(multimodal, "FILMS_PER_STEP", 2)
    monkeypatch.setattr(language, "ROWS_PER_STEP", 2)
    for name, num in (
        ("EMOJI_VIEWS", 8),
        ("DRAWING_VIEWS", 4),
        ("PAIRS", 4),
        ("COUNTED", 4),
        ("EMPTY", 2),
    ):
        monkeypatch.setattr(contrastive, name, num)


def make_pool(model: Flamingo) -> Pool:
    return PoolBuilder(model.vision, CONFIG.vision, sprites(40), seed=0).training(SIZES)


def make_aligner(model: Flamingo) -> multimodal.Aligner:
    heads = contrastive.ContrastiveHeads(CONFIG.vision.dim, sprites(40))
    codes = heads.codes().detach()
    return multimodal.Aligner(model, StandIns(CONFIG.decoder.dim), codes, make_pool(model))


def joining_stages(model: Flamingo, encoder: Encoder) -> dict[str, SeededStage]:
    aligner = make_aligner(model)
    tests = {"known": aligner.pool}
    return {
        "alignment": multimodal.AlignmentStage(model, aligner, encoder, seed=0),
        "documents": multimodal.DocumentStage(model, aligner, encoder, tests, sprites(40), seed=0),
    }


def train(folder: Path, encoder: Encoder) -> Flamingo:
    torch.manual_seed(0)
    model = Flamingo(CONFIG)
    multimodal.initialise(model)
    for name, stage in joining_stages(model, encoder).items():
        Run(folder, seed=0).train(name, QUICK, lambda stage=stage: stage)  # type: ignore[misc]
    return model


def test_tower_and_language_model_stay_frozen_and_the_rest_moves(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    torch.manual_seed(0)
    before = Flamingo(CONFIG).state_dict()
    after = train(tmp_path, encoder).state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"resampler", "cross_attention"}


def test_the_same_seed_trains_the_same_weights(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    first, again = (train(tmp_path / name, encoder).state_dict() for name in "ab")
    assert all(torch.equal(first[name], again[name]) for name in first)


def vision_stage(encoder: Encoder) -> SeededStage:
    torch.manual_seed(0)
    model = Flamingo(CONFIG)
    multimodal.initialise(model)
    heads = contrastive.ContrastiveHeads(CONFIG.vision.dim, sprites())
    return contrastive.VisionStage(model, heads, StandIns(CONFIG.decoder.dim), sprites(), seed=0)


def language_stage(encoder: Encoder) -> SeededStage:
    torch.manual_seed(0)
    # What the seeded circuits take:
    decoder = Decoder(replace(CONFIG.decoder, num_heads=4, head_dim=8, num_layers=3))
    stand_ins, gallery = StandIns(CONFIG.decoder.dim), text_gallery()
    language.initialise(decoder)
    language.tell_codes(decoder, stand_ins, encoder, gallery.code_of)
    return language.LanguageStage(decoder, stand_ins, encoder, LINES, gallery, seed=0)


def joining_stage(name: str) -> Callable[[Encoder], SeededStage]:
    def build(encoder: Encoder) -> SeededStage:
        torch.manual_seed(0)
        model = Flamingo(CONFIG)
        multimodal.initialise(model)
        return joining_stages(model, encoder)[name]

    return build


STAGES = {
    "vision": vision_stage,
    "language": language_stage,
    "alignment": joining_stage("alignment"),
    "documents": joining_stage("documents"),
}


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_was_killed_ends_in_the_same_bits(
    name: str,
    small_steps: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    encoder: Encoder,
) -> None:
    monkeypatch.setattr(contrastive, "ALONE_FOR", 1)
    config = replace(QUICK, save_every=2)
    whole, killed = STAGES[name](encoder), STAGES[name](encoder)
    Run(tmp_path / "whole", seed=0).train(name, config, lambda: whole)
    losses = killed.losses

    def kill_at_3(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == 3:
            raise Killed
        return losses(step)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(killed, "losses", kill_at_3)
        Run(tmp_path / "killed", seed=0).train(name, config, lambda: killed)
    assert [p.name for p in (tmp_path / "killed" / name).glob("*.pt")] == ["state-00000002.pt"]
    again = STAGES[name](encoder)
    Run(tmp_path / "killed", seed=0).train(name, config, lambda: again)
    ended, wanted = again.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(ended[key], wanted[key]) for key in wanted)


def test_a_stage_that_is_done_is_loaded_not_trained(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    run, done, again = Run(tmp_path, seed=0), language_stage(encoder), language_stage(encoder)
    run.train("language", QUICK, lambda: done)
    log = (tmp_path / "language" / "log.jsonl").read_text()
    run.train("language", QUICK, lambda: again)
    assert (tmp_path / "language" / "log.jsonl").read_text() == log
    ended, wanted = again.module.state_dict(), done.module.state_dict()
    assert all(torch.equal(ended[key], wanted[key]) for key in wanted)


def test_alignment_brings_the_first_block_nearer_to_the_stand_ins(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    stage = STAGES["alignment"](encoder)
    config = replace(ALIGNMENT, steps=200, rate=2e-2)
    Run(tmp_path, seed=0).train("alignment", config, lambda: stage)
    log = tmp_path / "alignment" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for figure in ("who", "motion", "size"):
        last, first = (sum(row[figure] for row in part) for part in (rows[-20:], rows[:20]))
        assert last < 0.85 * first, figure


def test_the_log_of_a_run_has_the_means_of_its_stages(tmp_path: Path) -> None:
    (tmp_path / "vision").mkdir()
    rows = [{"step": step, "loss": step, "seconds": 2.0 * step} for step in range(1, 31)]
    rows[9] |= {"held_out": 0.5}
    told = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "vision" / "log.jsonl").write_text(told)
    curves.merge_logs(tmp_path)
    merged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert merged == [
        {"stage": "vision", "step": 20, "loss": 10.5, "seconds": 40.0, "held_out": 0.5},
        {"stage": "vision", "step": 30, "loss": 25.5, "seconds": 60.0},
    ]


def test_a_picture_of_nothing_is_its_background_and_nobody_is_told_to_be_there() -> None:
    rng = np.random.default_rng(0)
    scene = replace(empty_scene(rng), background=4, texture=0)
    pixels = render_scene(scene, sprites(), rng).astype(int)
    assert (pixels[..., 2] > pixels[..., 0] + 60).all()  # blue everywhere
    assert contrastive.said_of([scene]).classes.tolist() == [[-1, -1]]
    shown = describe(scene, sprites())
    assert tasks.caption(shown) == "nothing on a blue background."
    gallery = text_gallery()
    asked = [Tasks(gallery, gallery.rng).yes_no(gallery.empty()) for _ in range(20)]
    assert {example.answer for example in asked} == {" no"}
    assert not np.any(gallery.empty().code)


def test_a_pool_batches_films_of_one_length_and_knows_what_is_alike() -> None:
    torch.manual_seed(0)
    pool = make_pool(Flamingo(CONFIG))
    numbers = [0, *pool.numbers(lambda shown: shown.motion is not None), 1]
    for places, features in pool.batches(numbers):
        assert all(len(pool.features[numbers[p]]) == features.shape[1] for p in places)
    gallery = PoolGallery(pool, sprites(40), np.random.default_rng(0))
    for shown in (gallery.single(), gallery.pair(), gallery.film()):
        like = gallery.like(shown)
        assert set(like.names) & set(shown.names) or like.background == shown.background
        assert bool(like.motion) == bool(shown.motion)


def test_a_thing_of_a_pool_is_one_emoji_and_its_views_differ() -> None:
    torch.manual_seed(0)
    pool = make_pool(Flamingo(CONFIG))
    gallery = PoolGallery(pool, sprites(40), np.random.default_rng(0))
    sprite_of = pool.said.classes[:, 0].tolist()
    for view in gallery.classes(3):
        numbers = {view().number for _ in range(40)}
        assert len({sprite_of[number] for number in numbers}) == 1
        assert len(numbers) > 1


def test_stage_three_begins_as_the_bare_language_model(encoder: Encoder) -> None:
    model = Flamingo(CONFIG)
    multimodal.initialise(model)
    tokens = encoder.examples([Example("A", " dax.", Shown((), "red", number=0))], "binding")
    batch = multimodal.PictureBatch.collate([tokens], encoder.image)
    latents = torch.randn(1, 1, 4, 24)
    with torch.no_grad():
        seeing = multimodal.forward(model, batch, latents)
        blind = multimodal.forward(model, batch, latents * 3 + 1)
    assert torch.equal(seeing, blind)


def test_padding_and_company_change_no_loss(encoder: Encoder) -> None:
    torch.manual_seed(0)
    model, pool = Flamingo(CONFIG), make_pool(Flamingo(CONFIG))
    rng = np.random.default_rng(0)
    drawn = Tasks(PoolGallery(pool, sprites(40), rng), rng)
    documents = [encoder.examples(drawn.kinds[kind](), kind) for kind in multimodal.PER_STEP]
    numbers = sorted({picture.number for tokens in documents for picture in tokens.pictures})
    latents = multimodal.encode(model, pool, numbers)

    def losses(batches: list[multimodal.PictureBatch]) -> torch.Tensor:
        parts = [
            multimodal.token_losses(model, b, latents[multimodal.places(numbers, b)])[0]
            for b in batches
        ]
        return torch.cat(parts)

    with torch.no_grad():
        alone = losses([multimodal.PictureBatch.collate([d], encoder.image) for d in documents])
        together = losses([multimodal.PictureBatch.collate(documents, encoder.image)])
    torch.testing.assert_close(together, alone)


def test_an_exam_says_of_every_picture_what_it_shows(tmp_path: Path) -> None:
    exam = make_exam(sprites(), seed=0, views=2, twice=2, counted=8, pairs=4, films=2)
    exam.write(tmp_path / "exam.zip")
    with zipfile.ZipFile(tmp_path / "exam.zip") as archive:
        index = json.loads(archive.read("index.json"))
        assert {row["file"] for row in index["pictures"]} == set(archive.namelist()) - {
            "index.json"
        }
        film = next(row for row in index["pictures"] if row["kind"] == "film")
        with Image.open(BytesIO(archive.read(film["file"]))) as opened:
            assert getattr(opened, "n_frames", 1) == 6
    assert all(held_out_word(word) for word in index["made_up_words"])
    known = set(sprites().known())
    for row in index["pictures"]:
        numbers = {int(name.removeprefix("thing")) for name in row["objects"]}
        assert (numbers <= known) == (row["split"] == "known")
    kinds = {q["kind"] for row in index["pictures"] for q in row["questions"]}
    assert kinds == {"colour", "count", "name", "what", "where", "yes_no", "motion"}
