"""Pre-training of a vision tower and of a language model: the same loop, other stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_model.attention import DenseSelfAttention
from flamingo_model.positions import reach
from flamingo_model.training.data.document import Document, MediaPart, TextPart
from flamingo_model.training.optimise import trained
from flamingo_model.training.report import read_log
from flamingo_model.training.rows import Row
from flamingo_model.training.stages.contrastive import ContrastiveStage, two_term_loss
from flamingo_model.training.stages.language import LanguageStage, pack
from flamingo_model.vision_config import VisionConfig
from tiny import tiny_config, tiny_tokenizer
from training.made import ListSource, base, captions, config, picture, stage, train

TOKENIZER = tiny_tokenizer()
CHECKPOINT = {"kind": "checkpoint"}
TEXT = {"dim": 16, "text_width": 16, "text_layers": 1, "text_heads": 2}
TOWERS = {
    "conv": tiny_config().vision,
    "nfnet": VisionConfig(
        image_size=32, dim=64, kind="nfnet", widths=(16, 32, 32, 64), blocks=(1, 1, 1, 1)
    ),
    "clip": VisionConfig(
        image_size=16, dim=24, kind="clip", patch_size=8, num_layers=1, num_heads=2, ff_dim=32
    ),
}


def contrastive(folder: Path, **train: Any) -> Any:
    return config(
        folder,
        {"batch": 8},
        train={"stage": "contrastive", "rate": 3e-3, "steps": 30, **train},
        output=CHECKPOINT,
        contrastive=TEXT,
    )


def language(folder: Path, **train: Any) -> Any:
    sets = ({"path": "a", "length": 24}, {"path": "b", "held_out": True})
    options = {"stage": "language", "rate": 1e-2, "steps": 20, "evaluate_every": 19, **train}
    return config(folder, *sets, train=options, output=CHECKPOINT)


def test_pictures_and_texts_find_each_other(tmp_path: Path) -> None:
    built = train(contrastive(tmp_path), [ListSource(captions(8))])
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert rows[0]["loss"] > 1.5 and rows[-1]["loss"] < 0.7 and rows[-1]["right/made"] == 1
    assert rows[0]["scale"] != rows[-1]["scale"]
    learned = {name for name in trained(built.module) if name.startswith("model.")}
    assert learned and all(name.startswith("model.vision.") for name in learned)


@pytest.mark.parametrize("kind", ["nfnet", "clip"])
def test_every_kind_of_tower_learns(tmp_path: Path, kind: str) -> None:
    tower = TOWERS[kind]
    shape = replace(
        tiny_config(), vision=tower, resampler=replace(tiny_config().resampler, dim=tower.dim)
    )
    before = base(shape=shape)
    built = train(
        contrastive(tmp_path, steps=2), [ListSource(captions(8))], start=base(shape=shape)
    )
    moved = {
        name
        for name, x in before.model.state_dict().items()
        if not torch.equal(x, built.module.state_dict()[f"model.{name}"])
    }
    assert moved and all(name.startswith("vision.") for name in moved)


def test_the_two_terms_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    pictures, texts = (F.normalize(torch.randn(3, 4), dim=-1) for _ in range(2))
    scores = pictures @ texts.T * 7
    to_text = -sum(scores[i].log_softmax(0)[i] for i in range(3)) / 3
    to_picture = -sum(scores[:, i].log_softmax(0)[i] for i in range(3)) / 3
    found = two_term_loss(pictures, texts, torch.tensor(7.0), 0.0)
    torch.testing.assert_close(found, (to_text + to_picture) / 2)


def test_an_empty_share_of_pairs_still_takes_part(tmp_path: Path) -> None:
    built = stage(contrastive(tmp_path), [ListSource(captions(8))])
    assert isinstance(built, ContrastiveStage)
    pictures, texts = built.embed([])
    assert pictures.shape == texts.shape == (0, 16) and pictures.requires_grad
    assert built.loss([])[0] == 0


def test_the_decoder_learns_text_and_nothing_else_moves(tmp_path: Path) -> None:
    before = base().model.state_dict()
    built = train(language(tmp_path), [ListSource(captions(8)), ListSource(captions(4))])
    after = built.module.state_dict()
    moved = [name for name, x in before.items() if not torch.equal(x, after[f"model.{name}"])]
    assert moved and all(name.startswith("decoder.") for name in moved)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["held_out/b"] < rows[18]["held_out/b"] * 1.5


def test_packed_documents_are_learned_as_if_each_were_alone(tmp_path: Path) -> None:
    built = stage(language(tmp_path), [ListSource(captions(4)), ListSource(captions(4))])
    assert isinstance(built, LanguageStage)
    rows = built.mixture.read(0)[0].items
    packed = pack(rows, 24)
    assert len(packed[0]) < len(rows)
    found = built.module(*packed)
    expected = torch.cat([alone(built, row) for row in rows])
    torch.testing.assert_close(found.sort().values, expected.sort().values, rtol=1e-4, atol=1e-5)


def alone(built: LanguageStage, row: Row) -> Tensor:
    decoder, ids = built.module.model.decoder, torch.tensor([row.ids])
    see = DenseSelfAttention(1, len(row.ids), reach(decoder.config))
    logits = decoder.logits(decoder(ids, torch.arange(len(row.ids))[None], see))[0]
    losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return losses[torch.tensor(row.learned[1:])]


def test_a_language_model_too_may_recompute_what_was_not_kept(tmp_path: Path) -> None:
    found = []
    for is_recomputed in (False, True):
        built = stage(
            language(tmp_path, gradient_checkpointing=is_recomputed),
            [ListSource(captions(4)), ListSource(captions(4))],
        )
        for term in built.terms(0):
            term.loss.backward()
        found.append([p.grad for p in trained(built.module).values() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_pictures_are_left_out_of_the_text_of_a_language_model(tmp_path: Path) -> None:
    parts = (MediaPart("image", picture(1)), TextPart("a"), MediaPart("image", b"?"), TextPart("b"))
    source = ListSource([Document(parts, "made:0")])
    built = stage(language(tmp_path), [source, source])
    assert isinstance(built, LanguageStage)
    (row, *_) = built.mixture.read(0)[0].items
    assert TOKENIZER.decode(row.ids, skip_special_tokens=False) == "ab<|endoftext|>"
    assert not row.media
