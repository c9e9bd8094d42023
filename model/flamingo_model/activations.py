"""Activations under one name each, wherever they are used."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def squared_relu(x: Tensor) -> Tensor:
    """The resampler's and cross-attention's (paper, section A.1.1; So et al. 2021)."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
