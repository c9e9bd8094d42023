"""Which kernel is the fastest for which shape, and what packing does to a whole model's parts.

`python tests/bench/linears.py [kernels|model] [THREADS]`, on a CPU with our kernels. The model is
the mid-size one: OPT-125m's shape, a ViT-B/16, cross-attention in every layer, random weights. With
one thread the CPU's own time is taken, so that whatever else runs does not count. The weights of a
kernel are cold: every call reads another copy, more of them than a cache holds.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_model import linears
from flamingo_model.config import (
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    ResamplerConfig,
    VisionConfig,
)
from flamingo_model.flamingo import Flamingo
from flamingo_model.linears import EightBit, EightBitWeights, FourBit, Kernel, Plain, Widened
from flamingo_model.native.products import Around, float_product
from flamingo_model.packing import KINDS, pack_model

SHAPES = ((768, 768), (768, 3072), (3072, 768), (768, 512), (768, 50272))
ROWS = (1, 3, 8, 16, 32, 64, 256, 1024, 3152)
COLD = 400 * 2**20  # bytes of weights read in one round
SECONDS = 0.5  # for each kernel, shape and number of rows
ROUNDS, ROUND_SECONDS = 3, 0.2  # of the model's parts
LENGTH, PICTURES = 400, 16  # a prompt of 16 shots
Run = Callable[[], object]


class Prepacked:
    """oneDNN's own layout, which torch takes for frozen weights."""

    def __init__(self, weight: Tensor, num_rows: int) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
        self.type, self.nbytes = weight.dtype, weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.type)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return out


def four_bit(weight: Tensor) -> Kernel:
    return FourBit(*linears.four_bits(weight), None)


KERNELS: dict[str, Callable[[Tensor, int], Kernel]] = {
    "float32": lambda w, n: Plain(w, None),
    "float32 oneDNN": Prepacked,
    "bfloat16": lambda w, n: Plain(w.bfloat16(), None),
    "bfloat16 oneDNN": lambda w, n: Prepacked(w.bfloat16(), n),
    "bfloat16 widened": lambda w, n: Widened(w.bfloat16(), None),
    "int8 rows": lambda w, n: EightBit(w, None),
    "int8 weights": lambda w, n: EightBitWeights(w, None),
    "int4": lambda w, n: four_bit(w),
    "ours float32": lambda w, n: float_product(w, Around()),
    "ours bfloat16": lambda w, n: float_product(w.bfloat16(), Around()),
    "ours float16": lambda w, n: float_product(w.half(), Around()),
    "ours int8": lambda w, n: linears.int8(w, Around())[0],
    "ours int4": lambda w, n: linears.int4(w, Around())[0],
}
clock = time.perf_counter


def fastest(run: Run, seconds: float) -> float:
    """The least time of many runs, after one that does not count."""
    run()
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        started = clock()
        run()
        best = min(best, clock() - started)
    return best


def limits() -> tuple[float, float]:
    """Bytes read and float32 operations, a second."""
    matrix, vector = torch.rand(2**13, 2**13), torch.rand(2**13)
    read = fastest(lambda: matrix.mv(vector), 3)
    square = matrix[:1536, :1536].contiguous()
    return matrix.nbytes / read, 2 * 1536**3 / fastest(lambda: square @ square, 3)


def kernel_row(name: str, shape: tuple[int, int], num_rows: int, width: int) -> str:
    weight = torch.randn(shape[1], shape[0]) * 0.02
    make, one = KERNELS[name], KERNELS[name](weight, num_rows)
    copies = [one, *(make(weight, num_rows) for _ in range(min(COLD // one.nbytes, width)))]
    x = torch.randn(num_rows, shape[0])
    took = fastest(lambda: [kernel(x) for kernel in copies], SECONDS) / len(copies)
    error = float((one(x).float() - F.linear(x, weight)).norm() / F.linear(x, weight).norm())
    rate, speed = one.nbytes / took / 1e9, 2 * num_rows * weight.numel() / took / 1e9
    return f"{name:17}{took * 1e6:11.0f} us{rate:8.1f} GB/s{speed:7.0f} GFLOP/s   error {error:.0e}"


def kernels() -> None:
    for shape in SHAPES:
        for num_rows in ROWS:
            print(f"\n{shape[0]} → {shape[1]}, {num_rows} rows")
            for name in KERNELS:
                print(kernel_row(name, shape, num_rows, 400 if num_rows < 16 else 2), flush=True)


def mid_size() -> FlamingoConfig:
    return FlamingoConfig(
        name="mid-size",
        vision=VisionConfig(
            224, 768, "clip", patch_size=16, num_layers=12, num_heads=12, ff_dim=3072
        ),
        resampler=ResamplerConfig(768, num_heads=8, head_dim=64),
        cross_attention=CrossAttentionConfig(num_heads=8, head_dim=64, activation="gelu"),
        decoder=DecoderConfig(
            *(50272, 768, 12, 12, 64, 3072, 2048),
            **{"norm": "layer", "norm_eps": 1e-5, "positions": "learned_offset_2"},
            **{"activation": "relu", "gated": False, "attention_bias": True},
            **{"out_bias": True, "feed_forward_bias": True},
        ),
    )


def attention(kept: Tensor) -> Callable[..., Tensor]:
    """One new token for each row of `kept` keys [B, heads, T, D], or many of one."""

    def attend(layer: int, q: Tensor, *new: Tensor) -> Tensor:
        if len(q) == len(kept):
            return F.scaled_dot_product_attention(q.unsqueeze(2), kept, kept).squeeze(2)
        rows = (x.transpose(0, 1).unsqueeze(0) for x in (q, *(new or ())))
        keys = () if new else (kept, kept)
        out = F.scaled_dot_product_attention(*rows, *keys, is_causal=bool(new))
        return out.squeeze(0).transpose(0, 1)

    return attend


def step(model: Flamingo, num_rows: int, length: int = 1) -> Run:
    """Logits of the last tokens after a prompt of 16 shots, or (length) of the prompt itself."""
    count = num_rows * length
    ids, positions = torch.arange(count), torch.full((count,), LENGTH)
    itself = attention(torch.randn(num_rows, 12, LENGTH, 64))
    media = attention(torch.randn(num_rows, 8, 64, 64))
    return lambda: model.logits(model(ids, positions, itself, media)[-num_rows:])


def side_by_side(runs: list[Run]) -> list[float]:
    """The least time of each, taken in turn: what disturbs one disturbs all."""
    rounds = [[fastest(run, ROUND_SECONDS) for run in runs] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def vision(model: Flamingo) -> Run:
    pixels = torch.randn(PICTURES, 3, 224, 224)
    return lambda: model.vision(pixels)


def resampler(model: Flamingo) -> Run:
    features = torch.randn(PICTURES, 1, 196, 768)
    return lambda: model.resampler(features)


def media(model: Flamingo) -> Run:
    latents = torch.randn(PICTURES, 64, 768)
    return lambda: model.project_media(latents)


PARTS: dict[str, Callable[[Flamingo], Run]] = {
    "decode, 1 row": lambda model: step(model, 1),
    "decode, 3 rows": lambda model: step(model, 3),
    "decode, 16 rows": lambda model: step(model, 16),
    "prefill, 400": lambda model: step(model, 1, LENGTH),
    "media k/v, 16": media,
    "resampler, 16": resampler,
    "vision, 16": vision,
}


def bytes_read(model: Flamingo, kind: str) -> int:
    """By a decoding step: the language model's layers, the blocks' but for media, the head."""
    blocks = model.blocks()
    unread = [block.to_kv for block in blocks]
    found = [*linears_of(model.decoder), *(x for block in blocks for x in linears_of(block))]
    sizes = (x.few.nbytes for x in found if not any(x is other for other in unread))
    return sum(sizes)


def linears_of(module: torch.nn.Module) -> list[linears.PackedLinear]:
    return [x for x in module.modules() if isinstance(x, linears.PackedLinear)]


def model_table(bandwidth: float, speed: float) -> None:
    torch.manual_seed(0)
    plain = Flamingo(mid_size()).eval().requires_grad_(False)
    models = {"plain": plain} | {kind: copy.deepcopy(plain) for kind in KINDS}
    for kind in KINDS:
        started = time.perf_counter()
        print(pack_model(models[kind], kind), f"in {time.perf_counter() - started:.1f} s")
    best: dict[tuple[str, str], float] = {}
    print(f"\n{'milliseconds':16}" + "".join(f"{kind:>11}" for kind in models))
    for name in PARTS:
        found = side_by_side([PARTS[name](model) for model in models.values()])
        best |= {(kind, name): took for kind, took in zip(models, found, strict=True)}
        print(f"{name:16}" + "".join(f"{took * 1e3:11.1f}" for took in found), flush=True)
    beams = {k: best[k, "decode, 3 rows"] / best[k, "decode, 1 row"] for k in models}
    read = {k: bytes_read(models[k], k) / best[k, "decode, 1 row"] / bandwidth for k in KINDS}
    print(f"{'3 rows / 1':16}" + "".join(f"{beams[kind]:11.2f}" for kind in models))
    print(f"{'read / bandwidth':16}{'':11}" + "".join(f"{read[kind]:11.2f}" for kind in KINDS))
    limit = PICTURES * 35.1e9 / speed  # a ViT-B/16's products at float32's peak
    print(
        "vision / float32's products: "
        + ", ".join(f"{kind} {best[kind, 'vision, 16'] / limit:.2f}" for kind in models)
    )


@torch.inference_mode()
def main(what: str, threads: int) -> None:
    global clock
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    bandwidth, speed = limits()
    print(f"{threads} threads: {bandwidth / 1e9:.1f} GB/s read, {speed / 1e9:.0f} GFLOP/s float32")
    if what == "kernels":
        kernels()
    else:
        model_table(bandwidth, speed)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "model", int(sys.argv[2]) if sys.argv[2:] else 2)
