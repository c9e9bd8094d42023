"""Packed layers against the plain ones: as exact as their kind, for every family and shape."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from exam import DATA
from flamingo_model import linears
from flamingo_model.checkpoints.native import EMBEDDED, load_native
from flamingo_model.config import CrossAttentionConfig, FlamingoConfig
from flamingo_model.decoder import Decoder
from flamingo_model.flamingo import Flamingo
from flamingo_model.linears import (
    GROUP,
    EightBit,
    EightBitWeights,
    FourBit,
    PackedLinear,
    Plain,
    pack_linear,
)
from flamingo_model.media import to_pixels
from flamingo_model.native.products import Product
from flamingo_model.packing import PackError, pack_decoder, pack_model
from flamingo_model.prompt import MediaPart, PromptRenderer, TextPart
from forward import IMAGE, dense, pictures
from language import IDS, THEIRS, WAYS, converted, deviation, their_model
from language import dense as decoder_logits
from our_kernels import needs_kernels, switch_off
from tiny import tiny_config, tiny_model

DOCUMENT = [0, IMAGE, 20, 30, 1, IMAGE, 40, 50]
ALLOWED = {"float32": 1e-6, "bfloat16": 0.01, "widened": 0.01, "int8": 0.03, "int4": 0.15}
"""Of one layer: the norm of the error by the norm of the answer."""
IDEFICS = CrossAttentionConfig(
    num_heads=2, head_dim=8, ff_mult=2, kind="idefics", query_key_norm=True, has_vector_gates=True
)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def layer(in_features: int, out_features: int, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    noise = torch.randn(out_features) if bias else None
    return torch.randn(out_features, in_features) / in_features**0.5, noise


@pytest.fixture(autouse=True)
def no_gradients() -> None:
    with torch.inference_mode():
        yield


# One layer


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("shape", [(64, 128), (96, 64), (24, 48), (7, 5), (1, 1), (33, 130)])
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_answers_at_every_shape_and_number_of_rows(
    kind: str, shape: tuple[int, int], bias: bool
) -> None:
    weight, offset = layer(*shape, bias)
    packed = pack_linear(weight, offset, kind)
    for rows in (1, 3, 70):
        x = torch.randn(rows, shape[0])
        for packed.many_from in (0.0, float("inf")):  # both kernels
            assert error(packed(x), F.linear(x, weight, offset)) < ALLOWED[kind]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_of_a_bfloat16_model_goes_into_every_kind(kind: str, affine: bool) -> None:
    norm = nn.LayerNorm(64, elementwise_affine=affine).bfloat16()
    weight, bias = layer(64, 128)
    packed, x = pack_linear(weight, bias, kind, norm=norm), torch.randn(9, 64).bfloat16()
    expected = F.linear(F.layer_norm(x.float(), (64,)), weight, bias)
    for packed.many_from in (0.0, float("inf")):
        assert error(packed(x), expected) < ALLOWED[kind] + 0.01


@pytest.mark.parametrize("kind", ALLOWED)
def test_shape_and_type_of_the_input_are_kept(kind: str) -> None:
    packed = pack_linear(*layer(64, 64), kind)
    for shape in ((64,), (2, 64), (2, 3, 64), (0, 64)):
        found = packed(torch.randn(shape).bfloat16())
        assert found.shape == shape and found.dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", [EightBit, EightBitWeights])
def test_both_eight_bit_kernels_agree_with_the_exact_product(kernel: Callable) -> None:
    weight, bias = layer(64, 64)
    x = torch.randn(5, 64)
    assert error(kernel(weight, bias)(x), F.linear(x, weight, bias)) < ALLOWED["int8"]


def test_a_row_in_eight_bits_does_not_depend_on_the_rows_beside_it() -> None:
    kernel, x = EightBit(*layer(96, 80)), torch.randn(33, 96)
    x[7] *= 1000
    assert torch.equal(torch.cat([kernel(row) for row in x.split(1)]), kernel(x))


def test_a_row_of_zeros_gives_the_bias_and_one_of_nan_gives_nan() -> None:
    weight, bias = layer(64, 64)
    found = EightBit(weight, bias)(torch.stack([torch.zeros(64), torch.full((64,), torch.nan)]))
    assert torch.allclose(found[0], bias) and found[1].isnan().all()


def test_rounding_to_eight_bits_is_to_the_nearest() -> None:
    kernel, x = EightBit(*layer(96, 80)), torch.randn(33, 96)
    x[0, 0], x[1] = 50.0, 0.0
    found, steps = kernel.rounded(x)
    exact = x.double() / steps.double()
    assert float((found.double() - 128 - exact).abs().max()) < 0.50001
    torch.testing.assert_close(steps[2:, 0], x[2:].abs().amax(1) / 127)
    assert found.dtype == torch.uint8


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_a_layer_told_so_writes_over_its_input(dtype: torch.dtype) -> None:
    packed, x = pack_linear(*layer(64, 64), "int8"), torch.randn(9, 64).to(dtype)
    given = x.clone()
    found = packed(given)
    assert torch.equal(given, x)
    assert torch.equal(packed.spend_input()(given), found)


def test_four_bits_in_their_own_kernel_and_in_eight_are_the_same_weights(kernels: str) -> None:
    packed = pack_linear(*layer(128, 64), "int4")
    assert isinstance(packed.few, Product if kernels == "ours" else FourBit)
    assert error(packed.few(torch.eye(128)), packed.many(torch.eye(128))) < 0.02


def test_shapes_that_four_bits_do_not_fit_are_kept_in_eight(kernels: str) -> None:
    for shape in ((52, 64), (50, 64), (64, 50)):  # (64, 50) fits ours
        weight, bias = layer(*shape)
        expected = pack_linear(weight, bias, "int8")(torch.eye(shape[0]))
        is_same = torch.equal(pack_linear(weight, bias, "int4").few(torch.eye(shape[0])), expected)
        assert is_same == (shape[0] % GROUP > 0 or kernels != "ours")


def test_a_shape_that_our_eight_bits_do_not_fit_is_torchs(kernels: str) -> None:
    ours = Product if kernels == "ours" else EightBit
    found = [type(pack_linear(*layer(num_in, 64), "int8").few) for num_in in (52, 50)]
    assert found == [ours, EightBit]


@needs_kernels
def test_one_kernel_is_for_few_rows_and_torchs_for_many_where_the_processor_has_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linears, "has_tiles", lambda flag: True)
    packed = pack_linear(*layer(64, 64), "int8")
    assert isinstance(packed.few, Product) and isinstance(packed.many, EightBit)
    assert packed.nbytes == packed.few.nbytes + packed.many.nbytes
    assert isinstance(pack_linear(*layer(64, 64), "bfloat16").few, Plain)


@needs_kernels
@pytest.mark.parametrize("kind", ["bfloat16", "widened"])
def test_sixteen_bits_are_ours_where_torch_has_no_tiles(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "has_tiles", lambda flag: False)
    packed = pack_linear(*layer(64, 64), kind)
    assert isinstance(packed.few, Product) and packed.few is packed.many
    assert packed.few.weight.dtype == torch.bfloat16 and packed.nbytes == 64 * 64 * 2


def test_without_vnni_activations_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(monkeypatch)
    monkeypatch.setattr(linears, "has_vnni", lambda: False)
    assert isinstance(pack_linear(*layer(64, 64), "int8").few, EightBitWeights)


def test_the_second_kernel_is_taken_from_where_it_is_measured_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linears, "is_faster", lambda many, few, x: len(x) >= 16)
    assert linears.crossover(Never(), Never(), 4) == 16
    monkeypatch.setattr(linears, "is_faster", lambda many, few, x: False)
    assert linears.crossover(Never(), Never(), 4) == float("inf")


class Never:
    nbytes = 0

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError


# Decoders


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", THEIRS)
def test_a_decoder_packed_in_float32_is_the_same(name: str) -> None:
    plain = converted(their_model(name))
    packed = packed_decoder(plain, "float32")
    for way in (decoder_dense, *WAYS):
        assert deviation(way(packed), way(plain)) < 1e-5


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_a_decoder_packed_smaller_stays_close(name: str, kind: str) -> None:
    plain = converted(their_model(name))
    found, expected = (decoder_dense(d) for d in (packed_decoder(plain, kind), plain))
    assert found.dtype == torch.float32
    assert error(found, expected) < {"bfloat16": 0.05, "int8": 0.1, "int4": 0.5}[kind]


@pytest.mark.usefixtures("kernels")
def test_logits_of_a_bfloat16_model_stay_float32() -> None:
    plain = converted(their_model("opt-350m")).bfloat16()
    found, expected = (decoder_dense(d) for d in (packed_decoder(plain, "bfloat16"), plain))
    assert found.dtype == torch.float32 and error(found, expected) < 0.02


def decoder_dense(decoder: Decoder) -> Tensor:
    return decoder_logits(decoder, IDS)


def packed_decoder(decoder: Decoder, kind: str) -> Decoder:
    packed = copy.deepcopy(decoder)
    pack_decoder(packed, kind)
    return packed


# Whole models


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("config", [tiny_config(), replace(tiny_config(), cross_attention=IDEFICS)])
def test_a_model_packed_in_float32_is_the_same(config) -> None:
    plain = tiny_model(config=config)
    packed = copy.deepcopy(plain)
    pack_model(packed, "float32")
    found, expected = (dense(model, DOCUMENT, pictures(2)) for model in (packed, plain))
    assert error(found, expected) < 1e-5
    assert not any(name.endswith("_gate") for name, _ in packed.named_parameters())
    assert not any(type(module) is nn.Linear for module in packed.modules())


@pytest.mark.parametrize(("kind", "wrong"), [("bfloat16", 0), ("int8", 0), ("int4", 1)])
def test_the_shipped_checkpoint_still_answers_the_same(kind: str, wrong: int) -> None:
    plain, tokenizer = load_native(EMBEDDED)
    packed = copy.deepcopy(plain)
    pack_model(packed, kind)
    prompts = list(exam_prompts(plain.config, PromptRenderer(tokenizer, plain.config.tokens), 8))
    image = tokenizer.token_to_id(plain.config.tokens.image)
    first, second = (
        [int(dense(model, ids, pixels, image)[-1].argmax()) for ids, pixels in prompts]
        for model in (packed, plain)
    )
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= wrong


def exam_prompts(
    config: FlamingoConfig, renderer: PromptRenderer, num: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Token ids and pixels of some prompts of the exam, spread over its kinds."""
    transform = config.vision.pixel_transform()
    with zipfile.ZipFile(DATA) as archive:
        prompts = json.loads(archive.read("prompts.json"))
        for prompt in prompts[:: len(prompts) // num][:num]:
            files = [part["image"] for part in prompt["parts"] if "image" in part]
            opened = [Image.open(io.BytesIO(archive.read(file))).convert("RGB") for file in files]
            pixels = np.stack([to_pixels(picture, transform) for picture in opened])[:, None]
            parts = [
                MediaPart() if "image" in part else TextPart(part["text"], True)
                for part in prompt["parts"]
            ]
            yield renderer.render(parts).token_ids, torch.from_numpy(transform.normalise(pixels))


def test_packing_again_changes_nothing_and_another_kind_is_refused() -> None:
    model = tiny_model()
    pack_model(model, "int8")
    before = list(model.modules())
    pack_model(model, "int8")
    assert list(model.modules()) == before
    with pytest.raises(PackError, match="packed as"):
        pack_model(model, "float32")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(PackError, match="int3"):
        pack_model(tiny_model(), "int3")


def test_a_model_on_another_device_is_left_alone() -> None:
    with torch.device("meta"):
        model = Flamingo(tiny_config())
    before = list(model.modules())
    assert pack_model(model, "int8").num_packed == 0
    assert list(model.modules()) == before


def test_layers_that_are_no_plain_linears_are_left_alone() -> None:
    model = tiny_model()
    quantised = type("Quantised", (nn.Linear,), {})
    model.decoder.layers[0].q.__class__ = quantised
    pack_model(model, "float32")
    kinds = [type(layer).__name__ for layer in model.decoder.layers]
    assert kinds == ["DecoderLayer", *["PackedDecoderLayer"] * 2]


@pytest.mark.usefixtures("kernels")
def test_the_report_counts_what_is_there() -> None:
    model = tiny_model()
    found = pack_model(model, "int8")
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert found.num_packed == len(packed)
    assert found.bytes_after == sum(linear.nbytes for linear in packed) < found.bytes_before
