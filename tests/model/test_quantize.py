"""Quantised layers stand where they should, and the network still says what it said."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from flamingo_model.checkpoints.native import EMBEDDED, load_native
from flamingo_model.flamingo import Flamingo
from flamingo_model.quantize import KINDS, QuantizeError, num_bytes
from forward import IMAGE, dense, pictures
from tiny import save_tiny

IDS = [10, IMAGE, 11, 12, 13]
each_kind = pytest.mark.parametrize("kind", KINDS)


def embedded(kind: str | None, dtype: torch.dtype = torch.float32) -> Flamingo:
    pytest.importorskip("bitsandbytes")
    return load_native(EMBEDDED, dtype=dtype, quantize=kind)[0]


def is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes")


@each_kind
def test_all_linear_layers_of_the_decoder_and_no_others_are_quantised(kind: str) -> None:
    model = embedded(kind)
    plain = embedded(None)
    found = {name for name, module in model.named_modules() if is_quantised(module)}
    linears = {n for n, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert found == {name for name in linears if name.startswith("decoder.layers.")}
    assert len(found) == 7 * len(model.decoder.layers)


@each_kind
def test_what_is_not_quantised_keeps_every_bit(kind: str) -> None:
    plain, model = embedded(None).state_dict(), embedded(kind).state_dict()
    kept = [name for name in plain if not name.startswith("decoder.layers.")]
    assert all(torch.equal(model[name], plain[name]) for name in kept)
    assert any(name.startswith("cross_attention.") for name in kept)
    assert {"decoder.embed.weight", "decoder.head.weight", "resampler.latents"} <= set(kept)


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.26), ("nf4", 0.14)])
def test_the_decoder_layers_shrink(kind: str, share: float) -> None:
    plain, model = (
        num_bytes(embedded(None).decoder.layers),
        num_bytes(embedded(kind).decoder.layers),
    )
    assert 0.125 * plain < model < share * plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "near"), [("int8", 0.02), ("nf4", 0.15)])
def test_logits_stay_near(tmp_path: Path, kind: str, near: float, dtype: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path)
    exact = dense(load_native(folder)[0], IDS, pictures(1))
    model, _ = load_native(folder, dtype=dtype, quantize=kind)
    found = dense(model, IDS, pictures(1).to(dtype))
    near += 0.05 if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(found, exact, rtol=0, atol=near * float(exact.abs().max()))
    assert not torch.equal(found, exact)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="'int3' is not known"):
        load_native(save_tiny(tmp_path), quantize="int3")


def test_without_bitsandbytes_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(QuantizeError, match=r"flamingo-server\[quantize\]"):
        load_native(save_tiny(tmp_path), quantize="nf4")
