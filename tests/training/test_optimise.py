"""Rates, decay and the clip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from flamingo_model.training.config import TrainConfig
from flamingo_model.training.optimise import Group, build_optimisers, clip_gradients, set_rate
from training.made import ListSource, captions, config, stage


def rates(**values: object) -> list[float]:
    settings = TrainConfig(steps=8, rate=1.0, **values)  # type: ignore[arg-type]
    optimisers = build_optimisers([Group({"w": nn.Parameter(torch.ones(2))})], settings)
    return [set_rate(optimisers, settings, step) for step in range(8)]


def test_the_rate_climbs_in_a_line_and_stays() -> None:
    assert rates(warm_up=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_a_cosine_goes_down_from_the_full_rate() -> None:
    found = rates(warm_up=2, schedule="cosine")
    assert found[:3] == [0.5, 1.0, 1.0] and found[5] == pytest.approx(0.5) and found[7] < 0.1


def test_weight_decay_pulls_on_cross_attention_s_matrices_and_on_no_resampler(
    tmp_path: Path,
) -> None:
    what = ["resampler", "cross_attention", "embeddings"]
    built = stage(config(tmp_path, train={"what": what}), [ListSource(captions(2))])
    decays, rest = built.groups()
    assert decays.decays and not rest.decays
    assert all(name.startswith("model.cross_attention") for name in decays.parameters)
    assert all("norm" not in name and "gate" not in name for name in decays.parameters)
    assert any(name.endswith("to_q.weight") for name in decays.parameters)
    assert {"model.resampler.latents", "model.decoder.embed.weight"} <= rest.parameters.keys()


def test_gradients_are_scaled_down_together() -> None:
    two = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter, value in zip(two, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    assert clip_gradients(two, 1.0) == pytest.approx(5)
    assert torch.cat([p.grad for p in two if p.grad is not None]).norm() == pytest.approx(1)


def test_a_group_may_learn_by_muon_at_a_rate_of_its_own() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    settings = TrainConfig(steps=4, rate=0.1)
    groups = [Group({"m": matrix}, rule="muon", rate=0.5), Group({"v": vector})]
    built = build_optimisers(groups, settings)
    set_rate(built, settings, 0)
    found = {type(o).__name__: o.param_groups[0]["lr"] for o in built}
    assert found == {"AdamW": 0.1, "Muon": 0.05}


def test_a_convolution_learns_by_muon_as_its_rows_would() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    settings = TrainConfig(steps=4, rate=0.1)
    (one,), (other,) = (build_optimisers([Group({"w": p}, rule="muon")], settings)
                        for p in (kernel, matrix))  # fmt: skip
    for _ in range(3):
        towards = torch.randn(2, 4, 12)
        for part in towards:  # two terms of a loss, one after the other
            (kernel.flatten(1) * part).sum().backward()
            (matrix * part).sum().backward()
        for optimiser in (one, other):
            optimiser.step()
            optimiser.zero_grad()
        assert torch.equal(kernel.flatten(1), matrix)
    assert kernel.shape == (4, 3, 2, 2) and kernel.grad is None


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="known: adamw, muon"):
        build_optimisers([Group({}, rule="sgd")], TrainConfig(steps=1))
