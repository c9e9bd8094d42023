"""The frozen decoder's linear layers in 8 or 4 bits, by bitsandbytes, which is imported here only.

Pictures' way (vision, resampler, cross-attention), embeddings, head and norms stay as they are:
they are few, and what was trained on top of the frozen model is sensitive.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .flamingo import Flamingo

KINDS = ("int8", "nf4")
OUTLIER = 6.0  # LLM.int8() (arXiv 2208.07339): activations above it are not rounded


class QuantizeError(Exception):
    """Quantisation is not possible here; the message says why."""


def library() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        message = "quantising needs bitsandbytes: pip install 'flamingo-server[quantize]'"
        raise QuantizeError(message) from error
    # At every call of every layer it says that bfloat16 is cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return bitsandbytes


def replace_linears(model: Flamingo, kind: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Puts empty quantised layers into the decoder; by the name of the weight each one takes."""
    if kind not in KINDS:
        raise QuantizeError(f"quantisation {kind!r} is not known; known: {KINDS}")
    modules, packed = library().nn, dict[str, nn.Module]()
    for index, layer in enumerate(model.decoder.layers):
        for name, linear in list(layer.named_children()):
            if isinstance(linear, nn.Linear):
                new = empty_linear(modules, linear, kind, dtype)
                setattr(layer, name, new)
                packed[f"decoder.layers.{index}.{name}.weight"] = new
    return packed


def empty_linear(modules: Any, linear: nn.Linear, kind: str, dtype: torch.dtype) -> nn.Module:
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    if kind == "int8":
        eight: nn.Module = modules.Linear8bitLt(
            *sizes, has_fp16_weights=False, threshold=OUTLIER, device="meta"
        )
        return eight
    four: nn.Module = modules.Linear4bit(
        *sizes, compute_dtype=dtype, quant_type="nf4", compress_statistics=True, device="meta"
    )
    if linear.in_features % 64 or linear.out_features % 32:  # its fast CPU layout takes no others
        setattr(four, "support_avx512bf16_for_cpu", False)  # noqa: B010
    return four


def pack(layer: nn.Module, weight: Tensor, device: str, dtype: torch.dtype) -> None:
    """Quantises one weight on its way to the device; it is nowhere whole but in this call."""
    modules = library().nn
    whole = weight.to(dtype=dtype, copy=True)  # quantising starts on the CPU, in the model's type
    if isinstance(layer, modules.Linear8bitLt):
        layer.weight = modules.Int8Params(whole, requires_grad=False).to(device)
    else:
        layer.weight = modules.Params4bit(
            whole, requires_grad=False, quant_type="nf4", module=layer
        ).to(device)


def num_bytes(model: nn.Module) -> int:
    """What the weights take, scales and tables of quantised ones included."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())
