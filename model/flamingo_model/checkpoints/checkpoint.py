"""A checkpoint that is open but not loaded, and how it becomes a network.

Tensors go one at a time from the file to their place, type and device: there are never two copies
of the whole. It knows nothing of files; those who open folders give it what they found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..config import FlamingoConfig
from ..flamingo import Flamingo
from .hollow import hollow
from .weights import CheckpointError, Weights, check, check_depth

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, device: str) -> torch.dtype:
    """ "auto" is float32 on a CPU and bfloat16 elsewhere: float16 overflows in large models."""
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    return DTYPES[name]


@dataclass(frozen=True)
class Checkpoint:
    """`weights` have our names; `where` names the folder in messages."""

    config: FlamingoConfig
    tokenizer: Tokenizer
    weights: Weights
    where: str

    def empty(self) -> Flamingo:
        """The network without data, once the weights are known to be exactly its own."""
        model = empty_model(self.config, len(self.weights.layout), self.where)
        check(self.weights.layout, model, self.where)
        return model

    def load(
        self,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
    ) -> Flamingo:
        """In evaluation mode and without gradients; `quantize` is one of `quantize.KINDS`."""
        model, packed = self.empty(), dict[str, nn.Module]()
        if quantize is not None:
            from ..quantize import pack, replace_linears

            packed = replace_linears(model, quantize, dtype)
        for name in self.weights.layout:
            tensor = self.weights[name]
            if name in packed:
                pack(packed[name], tensor, device, dtype)
            else:
                place(model, name, tensor.to(device=device, dtype=dtype, copy=True))
        return model.to(device).eval().requires_grad_(False)  # computed buffers move, too


def empty_model(config: FlamingoConfig, num_tensors: int, where: str) -> Flamingo:
    """Without data, and only for as many layers as `num_tensors` may fill; else CheckpointError."""
    layers = max(config.decoder.num_layers, config.resampler.num_layers, *config.vision.blocks)
    check_depth(max(layers, config.vision.num_layers), num_tensors, where)
    try:
        with hollow():
            return Flamingo(config)
    except ImportError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        message = f"{where}: no network has the sizes of its config.json: {error}"
        raise CheckpointError(message) from error


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor where the network holds an empty one."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    is_parameter = isinstance(getattr(owner, leaf), nn.Parameter)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
