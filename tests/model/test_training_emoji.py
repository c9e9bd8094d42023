"""The emoji world and its stages, on made-up sprites: no font, no corpus, seconds."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from flamingo_model.decoder import Decoder
from flamingo_model.flamingo import Flamingo
from flamingo_model.training.emoji import contrastive, language, multimodal, pictures
from flamingo_model.training.emoji.documents import (
    Encoder,
    Example,
    held_out_word,
    in_context_weights,
    made_up_words,
)
from flamingo_model.training.emoji.exam import make_exam
from flamingo_model.training.emoji.world import Scene, Sprites, random_scene, render_scene
from tiny import tiny_config, tiny_tokenizer

LINES = ["fox: a wild animal.", "moon: what shines at night.", "cake: sweet and baked."] * 20
CONFIG = replace(tiny_config(), vision=replace(tiny_config().vision, image_size=64))


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


def test_a_scene_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    scene = random_scene(3, np.random.default_rng(1), count=2)
    first, again, other = (
        render_scene(scene, sprites(), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_background_has_its_colour() -> None:
    pixels = render_scene(Scene(0, background=4), sprites(), np.random.default_rng(0))
    red, _, blue = pixels[0, 0].astype(int)
    assert blue > red + 60


def test_a_label_is_learned_only_once_it_was_shown() -> None:
    assert in_context_weights([0, 1, 1, 0]) == [0.0, 0.0, 1.0, 1.0]


def test_a_document_reads_picture_prompt_answer_and_end(encoder: Encoder) -> None:
    tokens = encoder.examples([Example("A", " dax.", 1.0, picture=7)], kind=0, background=0.0)
    assert tokens.ids[0] == encoder.image
    assert tokens.ids[-1] == encoder.end_of_chunk
    assert tokens.weights == [0.0, 0.0] + [1.0] * 6
    assert tokens.pictures == (7,)


def test_packed_rows_restart_positions_at_every_document(encoder: Encoder) -> None:
    world = language.TextWorld(encoder, LINES, np.random.default_rng(0))
    rows = language.pack(world.documents(), num_rows=3, length=80)
    starts = rows["segments"][:, 1:] != rows["segments"][:, :-1]
    assert (rows["positions"][:, 1:][starts] == 0).all()


def test_the_seeded_circuit_copies_before_any_training(encoder: Encoder) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG.decoder, dim=128, num_heads=4, head_dim=32, num_layers=2)
    decoder = Decoder(config)
    language.initialise(decoder)
    world = language.TextWorld(encoder, LINES, np.random.default_rng(0))
    repeats = iter(lambda: world.repeat(0), None)
    with torch.no_grad():
        _, figures = language.weighted_loss(decoder, language.pack(repeats, 8, 100))
    assert figures["repeat_right"] > 0.2  # chance is 1 in 256


def train(run: Path, encoder: Encoder) -> Flamingo:
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model, drawn, rng = Flamingo(CONFIG), sprites(40), np.random.default_rng(0)
    scenes = [random_scene(i % 40, rng, count=1) for i in range(160)]
    scenes += [random_scene(i % 40, rng, count=i % 4 + 1) for i in range(40)]
    pool = pictures.Pool.build(scenes, 40, model, drawn, rng)
    multimodal.train_multimodal(
        model, encoder, pool, pool, drawn, run, seed=0, num_steps=2, warm_steps=2
    )
    return model


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "PER_STEP", (2, 2, 2, 1))
    monkeypatch.setattr(multimodal, "PAIRS_PER_WARM_STEP", 8)
    monkeypatch.setattr(language, "ROWS_PER_STEP", 2)
    monkeypatch.setattr(contrastive, "CLASSES_PER_STEP", 8)


def test_tower_and_language_model_stay_frozen_and_the_rest_moves(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    torch.manual_seed(0)
    before = Flamingo(CONFIG).state_dict()
    after = train(tmp_path, encoder).state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"resampler", "cross_attention"}


def test_stage_three_begins_as_the_bare_language_model(encoder: Encoder) -> None:
    model = Flamingo(CONFIG)
    multimodal.initialise(model)
    world_tokens = encoder.examples([Example("A", " dax.", picture=0)], 0, 0.0)
    batch = pictures.PictureBatch.collate([world_tokens], encoder.image)
    latents = torch.randn(1, 1, 4, 24)
    with torch.no_grad():
        seeing = multimodal.forward(model, batch, latents)
        blind = multimodal.forward(model, batch, latents * 3 + 1)
    assert torch.equal(seeing, blind)


def test_the_same_seed_trains_the_same_weights(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    first, again = (train(tmp_path / name, encoder).state_dict() for name in "ab")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_first_two_stages_train_and_log(
    small_steps: None, tmp_path: Path, encoder: Encoder
) -> None:
    contrastive.train_vision(CONFIG.vision, sprites(), tmp_path, seed=0, num_steps=2)
    four_heads = replace(CONFIG.decoder, num_heads=4, head_dim=8)  # what the seeded circuit takes
    language.train_language(four_heads, encoder, LINES, tmp_path, seed=0, num_steps=20)
    stages = [line.split('"')[3] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert stages == ["vision", "language"]


def test_exam_answers_are_among_their_choices_and_pictures_are_numbered() -> None:
    exam = make_exam(sprites(), num=6, seed=0)
    assert all(prompt["answer"] in prompt["choices"] for prompt in exam.prompts)
    named = [
        part["image"] for prompt in exam.prompts for part in prompt["parts"] if "image" in part
    ]
    assert named == [f"{i:04d}.webp" for i in range(len(exam.pictures))]
    assert list(islice(named, 2)) == ["0000.webp", "0001.webp"]
