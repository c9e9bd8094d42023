"""Loss and gradients: the same whichever way a batch is cut, and none for what is frozen."""

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
from flamingo_model.training.config import DatasetConfig
from flamingo_model.training.data.document import Document, MediaPart, TextPart
from flamingo_model.training.objective import Objective, Shown, token_losses
from flamingo_model.training.optimise import trained
from flamingo_model.training.stages.flamingo import FlamingoStage
from tiny import tiny_config
from training.made import ListSource, base, caption, captions, config, film, picture, stage

TWO = ({"path": "a", "batch": 3, "weight": 1.0}, {"path": "b", "batch": 2, "weight": 0.2})
ALL = ["resampler", "cross_attention", "embeddings", "vision"]


def flamingo(folder: Path, gate: float = 0.7, **train: Any) -> FlamingoStage:
    """Two datasets; the second has films, text before pictures and several pictures a document."""
    mixed = [
        Document(
            (
                TextPart("see"),
                MediaPart("video", film(i, 2)),
                TextPart(f"film {i}"),
                MediaPart("image", picture(i)),
                TextPart("What?", learned=False),
                TextPart(" more"),
            ),
            f"mixed:{i}",
        )
        for i in range(2)
    ]
    sources = [ListSource(captions(3)), ListSource(mixed)]
    built = stage(config(folder, *TWO, train=train), sources, start=base(gate=gate))
    assert isinstance(built, FlamingoStage)
    return built


def gradients(built: FlamingoStage) -> dict[str, Tensor]:
    for term in built.terms(0):
        term.loss.backward()
    found = {n: p.grad for n, p in trained(built.module).items() if p.grad is not None}
    assert found
    return found


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_accumulating_over_datasets_equals_one_big_weighted_batch(tmp_path: Path) -> None:
    alone = gradients(flamingo(tmp_path, accumulation="accumulate", what=ALL))
    merged = gradients(flamingo(tmp_path, accumulation="merged", what=ALL))
    assert apart(alone, merged) < 1e-6


def test_the_loss_is_the_weighted_sum_of_each_dataset_s_mean(tmp_path: Path) -> None:
    built = flamingo(tmp_path)
    expected = 0.0
    for drawn, weight in zip(built.mixture.read(0), (1.0, 0.2), strict=True):
        losses = [plain_losses(built, item.row, item.frames) for item in drawn.items]
        expected += weight * torch.cat(losses).mean().item()
    again = flamingo(tmp_path)
    assert sum(t.loss.item() for t in again.terms(0)) == pytest.approx(expected, abs=1e-5)


def plain_losses(built: FlamingoStage, row: Any, frames: Any) -> Tensor:
    """Of one document by itself, without padding, all logits."""
    model, pixels = built.module.model, [built.transform.normalise(f) for f in frames]
    latents = torch.cat([model.encode_media(torch.from_numpy(p).unsqueeze(0)) for p in pixels])
    ids, length = torch.tensor([row.ids]), len(row.ids)

    def attend(block: int, q: Tensor) -> Tensor:
        kv = model.project_media(latents)
        out = torch.zeros_like(q)
        for at, media in enumerate(row.media_index):
            if media >= 0:
                k, v = kv.k[block][media], kv.v[block][media]  # [heads, R, D]
                out[0, at] = F.scaled_dot_product_attention(q[0, at].unsqueeze(1), k, v).squeeze(1)
        return out

    see = DenseSelfAttention(1, length, reach(model.config.decoder))
    logits = model.logits(model(ids, torch.arange(length)[None], see, attend))[0]
    losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return losses[torch.tensor(row.learned[1:])]


def test_with_closed_gates_the_logits_are_those_of_the_language_model(tmp_path: Path) -> None:
    built = flamingo(tmp_path, gate=0.0)
    batch = built.collate(built.mixture.draw(0))
    objective, model = built.module, built.module.model
    hidden = objective.hidden(batch, objective.cross_attend(batch, Shown.of(batch)))
    length = batch.ids.shape[1]
    see = DenseSelfAttention(len(batch.ids), length, reach(model.config.decoder))
    positions = torch.arange(length).expand_as(batch.ids)
    alone = model.decoder(batch.ids, positions, see)
    assert torch.equal(model.logits(hidden), model.decoder.logits(alone))


def test_recomputing_what_was_not_kept_changes_no_gradient(tmp_path: Path) -> None:
    plain = gradients(flamingo(tmp_path))
    recomputed = gradients(flamingo(tmp_path, gradient_checkpointing=True))
    assert apart(plain, recomputed) == 0


def test_in_bf16_what_learns_stays_float32_and_what_is_frozen_is_rounded(tmp_path: Path) -> None:
    built, plain = flamingo(tmp_path, precision="bf16"), flamingo(tmp_path)
    half, whole = gradients(built), gradients(plain)
    for name, parameter in built.module.named_parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted, name
    for name, gradient in half.items():
        similar = F.cosine_similarity(gradient.flatten(), whole[name].flatten(), 0)
        assert similar > 0.9 or whole[name].norm() < 1e-3, name


def test_losses_in_parts_are_those_of_all_logits_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamingo_model.training.objective.ROWS_AT_ONCE", 3)
    decoder = flamingo(tmp_path).module.model.decoder
    hidden = torch.randn(8, decoder.config.dim, requires_grad=True)
    targets, weights = torch.arange(8), torch.rand(8)
    found = token_losses(decoder, hidden, targets)
    expected = F.cross_entropy(decoder.logits(hidden), targets, reduction="none")
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((x * weights).sum(), hidden)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_media_that_only_other_processes_have_change_nothing(tmp_path: Path) -> None:
    built = flamingo(tmp_path)
    batch = built.collate(built.mixture.draw(0))
    shown = Shown.of(batch)
    more = Shown((1, 2, 3), shown.num_media + 2)
    assert torch.allclose(built.module(batch, shown)[0], built.module(batch, more)[0], atol=1e-6)


def test_the_largest_batch_is_learned_first_whatever_the_order_of_datasets(tmp_path: Path) -> None:
    sets = ({"path": "a", "batch": 2}, {"path": "b", "batch": 4}, {"path": "c", "batch": 2})
    built = stage(config(tmp_path, *sets), [ListSource(captions(4)) for _ in sets])
    found = [[name for name in term.figures if "/" in name] for term in built.terms(0)]
    assert found == [["loss/b"], ["loss/a"], ["loss/c"]]


def test_an_empty_share_takes_part_and_gives_gradients_of_zero(tmp_path: Path) -> None:
    built = flamingo(tmp_path)
    losses, _ = built.module(built.collate([]), Shown((1,), 2))
    losses.sum().backward()
    found = [p.grad for p in trained(built.module).values()]
    assert not len(losses) and all(g is not None and not g.any() for g in found)


def test_what_nothing_learns_from_is_encoded_without_gradients(tmp_path: Path) -> None:
    built = flamingo(tmp_path, what=["cross_attention"])
    batch = built.collate(built.mixture.draw(0))
    assert not built.module.latents(batch, Shown.of(batch)).requires_grad


def test_documents_without_pictures_are_learned_as_text(tmp_path: Path) -> None:
    source = ListSource([Document((TextPart("only text"),), "text:0")])
    built = stage(config(tmp_path, {"batch": 1}), [source])
    assert isinstance(built.module, Objective)
    (term,) = built.terms(0)
    assert term.figures["tokens"] == len("only text") + 1  # not the first, but two ends


@pytest.mark.parametrize(
    "shape",
    [
        replace(tiny_config(), decoder=replace(tiny_config().decoder, tie_embeddings=True)),
        replace(
            tiny_config(),
            decoder=replace(tiny_config().decoder, positions="alibi", block="parallel"),
        ),
        replace(
            tiny_config(),
            cross_attention=replace(
                tiny_config().cross_attention, sees_all_media=True, has_feed_forward=False
            ),
        ),
    ],
    ids=["tied", "alibi", "sees_all"],
)
def test_every_shape_of_network_learns(tmp_path: Path, shape: Any) -> None:
    what = ["resampler", "cross_attention", "embeddings"]
    source = ListSource([caption(i) for i in range(2)])
    built = stage(
        config(tmp_path, {"batch": 2}, train={"what": what}),
        [source],
        start=base(gate=0.5, shape=shape),
    )
    for term in built.terms(0):
        term.loss.backward()
    assert all(
        p.grad is not None and p.grad.any() for p in trained(built.module).values() if p.ndim > 1
    )


def test_a_dataset_s_name_is_that_of_its_path() -> None:
    assert DatasetConfig("folder/pairs.jsonl").label == "pairs"
