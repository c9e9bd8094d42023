"""What a query sees: windows and slopes."""

from __future__ import annotations

import math

import torch

from flamingo_model.positions import Reach


def test_a_window_counts_the_token_itself() -> None:
    at = torch.arange(4)
    seen = Reach(window=2).seen(at, at)[0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_a_slope_is_a_handicap_per_step_back() -> None:
    mask = Reach(slopes=(0.5,)).mask(torch.arange(3), torch.arange(3), torch.float32)
    far = -math.inf
    assert mask.tolist() == [[[0, far, far], [-0.5, 0, far], [-1, -0.5, 0]]]


def test_window_and_slope_go_together() -> None:
    both = Reach(slopes=(1.0,), window=2)
    mask = both.mask(torch.tensor([3]), torch.arange(4), torch.float32)
    assert mask.tolist() == [[[-math.inf, -math.inf, -1, 0]]]
