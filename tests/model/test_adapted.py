"""Rows of several adapters in one step are what each fused model alone makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters import FLAMINGO, adapter, low_rank, replacements
from flamingo_model.adapted import (
    Adapted,
    Rows,
    Updated,
    adapt,
    forward_side_by_side,
    logits_side_by_side,
)
from flamingo_model.adapters import AdapterError, Update, fuse
from flamingo_model.checkpoints.native import load_native, save_native
from flamingo_model.checkpoints.writing import StateDict
from flamingo_model.flamingo import Flamingo
from flamingo_model.packing import always_one_kernel, pack_model
from flamingo_model.paged_attention import CachedCrossAttention, CachedSelfAttention
from forward import Cached, document, flat_batch, pictures
from tiny import tiny_model, tiny_tokenizer
from tiny_engines import KINDS, config

IDS = [2, 70, 80, 1, 2, 90, 100, 110]
PARTS: dict[str, tuple[str, ...]] = {
    "flamingo": FLAMINGO,
    "gates": ("cross_attention.1.attention_gate",),
    "everything": (*FLAMINGO, "vision.", "decoder.embed.", "decoder.head."),
    "embeddings": ("decoder.embed.", "decoder.head."),
    "nothing": ("none",),
}


def changes(model: Flamingo, parts: str, linears: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    return replacements(model, seed, *PARTS[parts]) | low_rank(model, seed, linears=linears)


SOME = (
    ("flamingo", ("q", "v")),
    ("everything", ("q", "k", "v", "out", "gate", "up", "down")),
    ("nothing", ("up", "out")),
    ("embeddings", ()),
    ("gates", ()),
)


def fused(kind: str, tensors: dict[str, Tensor]) -> Flamingo:
    model = tiny_model(config=config(kind))
    fuse(model, adapter(model, tensors))
    return model


def answers(model: Flamingo, kind: str) -> Tensor:
    """Logits of a document and its two pictures, through the caches."""
    cached = Cached(model, num_rows=1)
    cached.show([0, 1], pictures(2))
    sees_all = config(kind).cross_attention.sees_all_media
    [found] = cached.step(document(IDS, sees_all=sees_all))
    return found


def side_by_side(base: Flamingo, views: Sequence[Adapted | None], kind: str) -> list[Tensor]:
    """The same document for each: all but the last token as prompts, then all last ones decoded."""
    sees_all, num = config(kind).cross_attention.sees_all_media, len(views)
    cached = Cached(base, num_rows=num, num_slots=2 * num)
    whole = []
    for row, view in enumerate(views):
        model = base if view is None else view.model
        media = model.project_media(model.encode_media(pictures(2)))
        cached.keep([2 * row, 2 * row + 1], media)
        whole.append(document(IDS, row, 2 * row, sees_all))
    first = step(cached, views, [], [chunk.cut(0, -1) for chunk in whole])
    last = step(cached, views, [chunk.cut(len(IDS) - 1) for chunk in whole], [])
    return [torch.cat(pair) for pair in zip(first, last, strict=True)]


def step(cached: Cached, views: Sequence[Adapted | None], decodes: list, prefills: list) -> list:  # type: ignore[type-arg]
    chunks = [*decodes, *prefills]
    batch = flat_batch(decodes, prefills, cached.layout)
    starts = torch.tensor([0, *(len(c.ids) for c in chunks)]).cumsum(0).tolist()
    groups = []
    for i, view in enumerate(views):
        one = ([chunks[i]], []) if decodes else ([], [chunks[i]])
        attend = CachedCrossAttention(cached.media, flat_batch(*one, cached.layout))
        groups.append(Rows(view, torch.arange(starts[i], starts[i + 1]), attend))
    hidden = forward_side_by_side(
        cached.model,
        groups,
        batch.token_ids,
        batch.positions,
        CachedSelfAttention(cached.blocks, batch),
    )
    models = [cached.model if v is None else v.model for v in views]
    owners = [m for m, chunk in zip(models, chunks, strict=True) for _ in chunk.ids]
    return list(
        logits_side_by_side(cached.model, owners, hidden).split([len(c.ids) for c in chunks])
    )


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [None, "float32"])
def test_all_rows_of_a_mixed_step_are_as_fused(kind: str, kernels: str | None) -> None:
    base = tiny_model(config=config(kind))
    weights = StateDict(tiny_model(config=config(kind)))
    tensors = [changes(base, *some, seed) for seed, some in enumerate(SOME)]
    tensors = [some for some in tensors if some]  # tied embeddings have no head of their own
    found = [adapter(base, some) for some in tensors]
    expected = [answers(fused(kind, some), kind) for some in tensors]
    expected.append(answers(tiny_model(config=config(kind)), kind))
    if kernels:
        pack_model(base, kernels)
    views = [*(adapt(base, weights, one, kernels) for one in found), None]
    for one, other in zip(side_by_side(base, views, kind), expected, strict=True):
        assert torch.allclose(one, other, atol=2e-4)
    assert not any(torch.allclose(one, expected[-1], atol=0.01) for one in expected[:-1])
    for view, other in zip(views[:-1], expected, strict=False):
        assert view and torch.allclose(answers(view.model, kind), other, atol=2e-4)


@torch.inference_mode()
def test_the_base_stays_as_it_is() -> None:
    base, before = tiny_model(), tiny_model()
    tensors = changes(base, *SOME[1], 1)
    view = adapt(base, StateDict(base), adapter(base, tensors), None)
    for tensor in view.model.state_dict().values():
        assert tensor.isfinite().all()
    assert torch.equal(answers(base, "tiny"), answers(before, "tiny"))
    assert base.state_dict().keys() == before.state_dict().keys()


def test_what_an_adapter_leaves_alone_is_not_copied() -> None:
    base = tiny_model()
    tensors = {"cross_attention.1.attention_gate": torch.ones(())}
    view = adapt(base, StateDict(base), adapter(base, tensors), None).model
    assert view.vision is base.vision and view.resampler is base.resampler
    assert view.decoder.layers[0] is base.decoder.layers[0]
    same = [a is b for a, b in zip(view.cross_attention, base.cross_attention, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize(
    ("parts", "has_own"),
    [("flamingo", True), ("gates", True), ("embeddings", False), ("nothing", False)],
)
def test_an_adapter_without_the_way_of_pictures_shares_the_bases(parts: str, has_own: bool) -> None:
    base = tiny_model()
    view = adapt(base, StateDict(base), adapter(base, changes(base, parts, ("q",), 1)), None)
    assert view.has_own_pictures == has_own


@torch.inference_mode()
@pytest.mark.parametrize("kernels", ["bfloat16", "int8", "int4"])
def test_an_adapters_parts_are_packed_as_a_fused_models_are(kernels: str) -> None:
    tensors = changes(tiny_model(), "everything", (), 1)
    base, expected = tiny_model(), fused("tiny", tensors)
    weights, found = StateDict(tiny_model()), adapter(base, tensors)
    for model in (base, expected):
        pack_model(model, kernels)
        always_one_kernel(model)
    view = adapt(base, weights, found, kernels)
    always_one_kernel(view.model)
    assert torch.equal(answers(view.model, "tiny"), answers(expected, "tiny"))
    mixed = side_by_side(base, [view, None, view], "tiny")
    for one, model in zip(mixed, (expected, base, expected), strict=True):
        assert torch.allclose(one, answers(model, "tiny"), atol=1e-3)


def quantised(model: Flamingo, folder: Path, kind: str) -> Flamingo:
    pytest.importorskip("bitsandbytes")
    save_native(model, tiny_tokenizer(), folder, torch.float32)
    return load_native(folder, quantize=kind)[0]


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_adapter_on_a_quantised_base_answers_as_the_fused_model_quantised(
    kind: str, tmp_path: Path
) -> None:
    tensors = changes(tiny_model(), "everything", (), 1)
    base = quantised(tiny_model(), tmp_path / "base", kind)
    expected = quantised(fused("tiny", tensors), tmp_path / "fused", kind)
    view = adapt(base, StateDict(tiny_model()), adapter(tiny_model(), tensors), None)
    truths = answers(expected, "tiny"), answers(base, "tiny")
    assert torch.equal(answers(view.model, "tiny"), truths[0])
    for one, truth in zip(side_by_side(base, [view, None], "tiny"), truths, strict=True):
        assert torch.allclose(one, truth, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_updates_beside_quantised_weights_are_nearer_to_the_truth_than_fused_ones(
    kind: str, tmp_path: Path
) -> None:
    tensors = low_rank(tiny_model(), 1)
    whole = fused("tiny", tensors)
    truth = answers(whole, "tiny")
    base = quantised(tiny_model(), tmp_path / "base", kind)
    rounded = answers(quantised(whole, tmp_path / "fused", kind), "tiny")
    view = adapt(base, StateDict(tiny_model()), adapter(tiny_model(), tensors), None)
    error = (answers(view.model, "tiny") - truth).norm()
    assert 0 < error < 1.2 * (rounded - truth).norm()


@torch.inference_mode()
def test_updates_beside_rounded_weights_are_nearer_to_the_truth_than_fused_ones() -> None:
    tensors = low_rank(tiny_model(), 1)
    truth = answers(fused("tiny", tensors), "tiny")
    base, rounded = tiny_model(), fused("tiny", tensors)
    weights, found = StateDict(tiny_model()), adapter(base, tensors)
    for model in (base, rounded):
        pack_model(model, "int8")
    view = adapt(base, weights, found, "int8")
    error = (answers(view.model, "tiny") - truth).norm()
    assert 0 < error < 1.2 * (answers(rounded, "tiny") - truth).norm()


def test_a_step_without_wanted_tokens_has_no_logits() -> None:
    base = tiny_model()
    assert logits_side_by_side(base, [], torch.zeros(0, 32)).shape == (0, 264)


def test_an_update_that_no_layer_takes_is_an_error() -> None:
    """As of a layer whose linear layers are kept under other names."""
    base = tiny_model()
    found = adapter(base, low_rank(base, 1))
    base.decoder.layers[1].renamed = base.decoder.layers[1]._modules.pop("down")
    with pytest.raises(AdapterError, match=r"layers\.1\.down"):
        adapt(base, StateDict(tiny_model()), found, None)


class Spends(torch.nn.Linear):
    """A product that leaves nothing of its input, as packed ones may."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        x.fill_(torch.nan)
        return out


@torch.inference_mode()
@pytest.mark.parametrize("rows", [None, torch.tensor([2, 0])])
def test_updates_do_not_rely_on_an_input_that_the_product_has_spent(rows: Tensor | None) -> None:
    product, update = Spends(3, 2), Update(torch.randn(1, 3), torch.randn(2, 1))
    x = torch.randn(4, 3)
    expected = product(x.clone())
    which = slice(None) if rows is None else rows
    expected[which] += x[which] @ update.delta().T
    assert torch.allclose(Updated(product, [(rows, update)])(x), expected, atol=1e-6)
