"""The C kernels' products against exact ones of the same rounded numbers, in float64."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_model import native
from flamingo_model.activations import squared_relu
from flamingo_model.linears import GROUP, EightBit, eight_bits, four_bits, pack_linear
from flamingo_model.native.products import (
    ACTIVATIONS,
    Around,
    Product,
    bend,
    eight_bit_product,
    float_product,
    four_bit_product,
    narrowed,
)
from our_kernels import needs_kernels

ROWS = (0, 1, 5, 6, 7, 24, 25, 97, 200)  # six at once, and parts of 6 or of 96
HALVES = ("bfloat16", "float16")
FLOATS = [(1, 1), (7, 5), (33, 130), (257, 64), (600, 80)]
SHAPES = {
    **dict.fromkeys(["float32", "bfloat16", "float16"], FLOATS),
    "int8": [(4, 1), (28, 65), (260, 130), (1020, 48)],
    "int4": [(32, 1), (64, 65), (288, 130), (96, 48)],
}
ALLOWED = {"int4": 1e-5}  # else 1e-6
NORMED = {"int8": 1e-3, "int4": 1e-3}  # a last place may round to another step
EVERY = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(kind: str, shape: tuple[int, int]) -> Tensor:
    """A weight [out, in] of a shape (in, out), of 16 bits the numbers that they hold."""
    weight = torch.randn(shape[1], shape[0]) / shape[0] ** 0.5
    return weight.to(getattr(torch, kind)).float() if kind in HALVES else weight


def product(kind: str, weight: Tensor, **around: Any) -> Product:
    beside = Around(**around)
    if kind == "float32" or kind in HALVES:
        return float_product(weight, beside)
    if kind == "int8":
        return eight_bit_product(*eight_bits(weight), beside)
    return four_bit_product(*four_bits(weight), beside)


def full(kind: str, num_in: int = 352, num_out: int = 130) -> Product:
    """With everything beside it that there may be."""
    norm = nn.LayerNorm(num_in)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    weight, bias = drawn(kind, (num_in, num_out)), torch.randn(num_out)
    return product(kind, weight, bias=bias, activation=F.gelu, norm=norm)


def exact(kind: str, weight: Tensor, x: Tensor) -> Tensor:
    """In float64, of x and weights as the kind rounds them."""
    if kind == "float32" or kind in HALVES:
        return x.double() @ weight.double().T
    if kind == "int8":
        values, scales = eight_bits(weight)
        return in_steps(x) @ (values.double() * scales.double().unsqueeze(1)).T
    values, scales, lowest = four_bits(weight)
    scales, lowest = (each.bfloat16().double().unsqueeze(-1) for each in (scales, lowest))
    weight = (values.unflatten(1, (-1, GROUP)) * scales + lowest).flatten(1)
    return in_steps(x.unflatten(1, (-1, GROUP))).flatten(1) @ weight.T


def in_steps(x: Tensor) -> Tensor:
    """Whole steps, 127 of them up to the largest of the last dimension."""
    steps = (x.abs().amax(-1, keepdim=True) * (1 / 127)).clamp(min=1e-30)
    return (x * steps.reciprocal()).round().double() * steps.double()


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == torch.float32
    return float((found - expected).norm() / expected.norm()) if len(found) else 0.0


def test_the_kernels_are_here_where_gcc_and_the_processor_are() -> None:
    lacking = [flag for flag in native.NEEDED if not torch.cpu.get_capabilities().get(flag)]
    if lacking or shutil.which("gcc") is None:
        pytest.skip(f"this processor lacks {lacking}" if lacking else "gcc is not here")
    assert native.is_available(), "compile them: python model/flamingo_model/native/compiling.py"


# Sums


@needs_kernels
@pytest.mark.parametrize(("kind", "shape"), EVERY)
def test_a_product_is_exact_at_every_shape_and_number_of_rows(
    kind: str, shape: tuple[int, int]
) -> None:
    weight = drawn(kind, shape)
    found = product(kind, weight)
    for rows in ROWS:
        x = torch.randn(rows, shape[0])
        assert error(found(x), exact(kind, weight, x)) < ALLOWED.get(kind, 1e-6)


@needs_kernels
def test_eight_bits_are_those_of_torchs_kernel() -> None:
    weight, bias, x = drawn("int8", (260, 130)), torch.randn(130), torch.randn(33, 260)
    found = product("int8", weight, bias=bias)(x)
    assert error(found, EightBit(weight, bias)(x)) < 1e-5


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_and_inputs_at_the_ends_of_their_range_do_not_overflow(kind: str) -> None:
    weight = torch.ones(70, 4096)
    weight[1::2] = -1.0
    weight[:, ::2] *= -1  # a group's 4-bit values are its lowest and its highest
    x = torch.ones(2, 4096)
    x[1, ::2] = -1.0
    found, scale = product(kind, weight)(x), 4096.0
    torch.testing.assert_close(found, exact(kind, weight, x).float(), rtol=1e-2, atol=1e-2 * scale)
    assert found[1, 1] < -0.99 * scale and found[1, 0] > 0.99 * scale


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_rows_may_lie_apart_and_be_of_any_float_type(kind: str) -> None:
    found, x = full(kind), torch.randn(9, 352).bfloat16()
    expected = found(x.float())
    assert torch.equal(found(x), expected)
    assert torch.equal(found(x.T.contiguous().T), expected)
    assert torch.equal(found(torch.stack([x, x], dim=-1)[..., 1]), expected)


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_inputs_of_another_width_are_refused(kind: str) -> None:
    found = full(kind)
    with pytest.raises(AssertionError):
        found(torch.randn(3, 351))
    with pytest.raises(AssertionError):
        found(torch.randn(3, 352), torch.randn(2, 130))


@needs_kernels
@pytest.mark.parametrize("kind", HALVES)
def test_weights_that_16_bits_hold_are_kept_so_and_give_the_same_bits(kind: str) -> None:
    weight, x = drawn(kind, (352, 130)), torch.randn(97, 352)
    weight[3, 4], weight[5, 6] = 0.0, -0.0
    weight[7, 8] = 2.0**-24 if kind == "float16" else 2.0**-130  # their own denormals
    found = float_product(weight, Around())
    assert found.weight.dtype == getattr(torch, kind)
    widened = weight.clone()
    widened[100, 0] = 1 + 2.0**-20  # one number more than 16 bits hold
    expected = float_product(widened, Around())
    assert expected.weight.dtype == torch.float32
    others = [i for i in range(130) if i != 100]
    for rows in (1, 6, 7, 97):
        assert torch.equal(found(x[:rows])[:, others], expected(x[:rows])[:, others])


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        ([1.0, 2.0**-100], torch.bfloat16),
        ([1.0, 1 + 2.0**-10], torch.float16),
        ([2.0**-100, 1 + 2.0**-10], torch.float32),
        ([1.0, 1 + 2.0**-20], torch.float32),
        ([70000.0, 1 + 2.0**-10], torch.float32),
        ([torch.nan], torch.float32),
        ([torch.inf, -torch.inf], torch.bfloat16),
    ],
    ids=str,
)
def test_the_smallest_type_is_taken_that_loses_nothing(
    numbers: list[float], dtype: torch.dtype
) -> None:
    weight = torch.ones(3, len(numbers))
    weight[1] = torch.tensor(numbers)
    found = narrowed(weight)
    assert found.dtype == dtype
    assert torch.equal(found.float().nan_to_num(7), weight.nan_to_num(7))


# One row and the others


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_a_row_alone_and_beside_others_is_the_same_bit_for_bit(kind: str) -> None:
    found, x, more = full(kind), torch.randn(200, 352), torch.randn(200, 130)
    together = found(x, more)
    for rows in (*range(1, 27), 95, 96, 97, 199):
        assert torch.equal(found(x[:rows], more[:rows]), together[:rows])
        assert torch.equal(found(x[-rows:], more[-rows:]), together[-rows:])


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_every_number_of_threads_gives_the_same_bits(kind: str, threads: int) -> None:
    found = full(kind, 1024, 520)  # enough for two threads from one row on
    for rows in (1, 7, 97):
        x = torch.randn(rows, 1024)
        several = found(x)
        torch.set_num_threads(1)
        assert torch.equal(several, found(x))
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("has_norm", [False, True])
def test_nan_and_infinity_stay_in_their_row(kind: str, has_norm: bool) -> None:
    norm = nn.LayerNorm(320) if has_norm else None
    found, x = product(kind, drawn(kind, (320, 130)), norm=norm), torch.randn(14, 320)
    expected = found(x)
    x[3], x[8, 5], x[13, 0] = torch.nan, torch.inf, torch.nan
    given = found(x)
    strange = torch.zeros(14, dtype=torch.bool).index_fill(0, torch.tensor([3, 8, 13]), True)
    assert torch.equal(given[~strange], expected[~strange])
    assert not given[strange].isfinite().any()


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_a_row_of_zeros_gives_the_bias(kind: str) -> None:
    bias = torch.randn(65)
    found = product(kind, drawn(kind, (64, 65)), bias=bias)
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-38), torch.zeros(64)])
    assert torch.equal(found(x), bias.expand(3, -1))


# What is beside it


@needs_kernels
@pytest.mark.parametrize("activation", [*ACTIVATIONS], ids=lambda x: getattr(x, "__name__", "none"))
def test_an_activation_is_torchs(activation: Any) -> None:
    large = torch.logspace(-8, 4, 4000)
    ends = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([torch.linspace(-20, 20, 40001), large, -large, ends]).unsqueeze(1)
    found = product("float32", torch.ones(1, 1), activation=activation)(x)
    plain = x if activation is None else activation(x)
    expected = x.double() if activation is None else activation(x.double())
    is_number = ~plain.isnan()
    torch.testing.assert_close(found[is_number], expected[is_number].float(), rtol=1e-6, atol=1e-6)
    assert found[x.isnan()].isnan().all()


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("num_in", [32, 352])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        *((nn.LayerNorm, {}), (nn.LayerNorm, {"bias": False}), (nn.LayerNorm, {"eps": 0.0})),
        *((nn.LayerNorm, {"elementwise_affine": False}), (nn.LayerNorm, {"eps": 0.5})),
        *((nn.RMSNorm, {"eps": 1e-6}), (nn.RMSNorm, {"eps": 0.5})),
        (nn.RMSNorm, {"eps": 1e-6, "elementwise_affine": False}),
    ],
    ids=str,
)
def test_a_norm_before_and_a_sum_behind_are_as_in_torch(
    kind: str, num_in: int, make: Callable[..., nn.Module], options: dict[str, Any]
) -> None:
    norm = make(num_in, **options)
    for parameter in norm.parameters():
        parameter.uniform_(0.5, 1.5)
    weight, bias = drawn(kind, (num_in, 70)), torch.randn(70)
    x, more = 5 * torch.randn(25, num_in) + 2, torch.randn(25, 70)
    found = product(kind, weight, bias=bias, activation=squared_relu, norm=norm)(x, more)
    expected = squared_relu(exact(kind, weight, norm(x)) + bias) + more
    assert error(found, expected) < NORMED.get(kind, 1e-6)


@needs_kernels
@pytest.mark.parametrize("make", [nn.LayerNorm, partial(nn.RMSNorm, eps=1e-6)], ids=str)
def test_a_norm_takes_inputs_of_any_width_far_from_zero(make: Callable[..., nn.Module]) -> None:
    for num_in in (1, 15, 16, 17, 100):
        x, norm = torch.randn(7, num_in) + 100, make(num_in)
        found = product("float32", torch.eye(num_in), norm=norm)(x)
        torch.testing.assert_close(found.double(), norm.double()(x.double()), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("width", [1, 17, 64, 1040])
@pytest.mark.parametrize("activation", [F.silu, F.gelu, F.relu])
def test_a_bend_is_an_activation_by_itself_or_one_of_gates(width: int, activation: Any) -> None:
    x = 3 * torch.randn(2, 20, 2 * width)  # many enough for two threads
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(bend(x, activation, is_gated=True), activation(gate) * up)
    torch.testing.assert_close(bend(x, activation), activation(x))
    torch.testing.assert_close(bend(gate, activation), activation(gate))  # its rows lie apart


@needs_kernels
@pytest.mark.parametrize("activation", [x for x in ACTIVATIONS if x], ids=lambda x: x.__name__)
def test_a_bend_has_the_bits_of_an_activation_in_a_product(activation: Any) -> None:
    x = 5 * torch.randn(9, 100)
    x[3, 5], x[4, 6], x[5, 7] = torch.nan, torch.inf, 1e-40
    plain = product("float32", torch.eye(100))(x)
    together = bend(plain, activation)
    fused = product("float32", torch.eye(100), activation=activation)(x)
    assert torch.equal(together.nan_to_num(7), fused.nan_to_num(7))
    for row in range(9):
        assert torch.equal(bend(plain[row], activation).nan_to_num(), together[row].nan_to_num())


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "types", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_a_layer_answers_in_the_type_of_its_input_whatever_is_added(
    kind: str, types: tuple[torch.dtype, torch.dtype]
) -> None:
    weight = drawn(kind, (64, 70))
    packed = pack_linear(weight, None, "float32" if kind in HALVES else kind)
    x, more = torch.randn(2, 3, 64).to(types[0]), torch.randn(2, 3, 70).to(types[1])
    found, kept = packed(x, more), more.clone()
    assert found.dtype == types[0]
    torch.testing.assert_close(found, packed(x) + more, rtol=0.02, atol=0.02, check_dtype=False)
    assert torch.equal(more, kept)


# Memory


@needs_kernels
@pytest.mark.parametrize("kind", SHAPES)
def test_a_product_keeps_what_its_addresses_point_to(kind: str) -> None:
    found, x = full(kind), torch.randn(5, 352)
    expected = found(x)
    gc.collect()
    sizes = [(130,), (192,), (352,), (130, 352), (192, 352)]
    others = [torch.full(size, torch.nan) for size in sizes for _ in range(20)]
    assert torch.equal(found(x), expected) and len(others) == 100


@needs_kernels
def test_bytes_are_those_of_whole_panels() -> None:
    sizes = {kind: product(kind, drawn(kind, (96, 65))).nbytes for kind in SHAPES}
    assert sizes == {
        "float32": 128 * 96 * 4,
        **dict.fromkeys(HALVES, 128 * 96 * 2),
        "int8": 128 * (96 + 4 + 4),  # a scale and a shift
        "int4": 128 * (96 // 2 + 3 * 4),  # three groups, each a scale and a lowest value
    }


def test_sums_too_small_for_a_usual_float_are_0_and_in_the_kernels_alone() -> None:
    x, weight = torch.full((1, 4), 1e-30), torch.full((3, 4), 1e-10)
    assert (float_product(weight, Around())(x) == 0).all()
    assert (x * 1e-10 > 0).all()  # the thread that called them goes on as it was
