"""Whole runs on a tiny network: what learns, what does not, and how a run goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_model.training.config import Config
from flamingo_model.training.data.document import Document
from flamingo_model.training.loop import NotFinite, Stage
from flamingo_model.training.optimise import trained
from flamingo_model.training.report import draw_curves, read_log
from flamingo_model.training.state import StateError, States, write_atomically
from training.made import ListSource, base, captions, config, stage, train, weights

LEARNS = {"steps": 6, "warm_up": 2, "schedule": "cosine", "rate": 1e-2}


def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def frozen(found: Stage) -> dict[str, Tensor]:
    learning = trained(found.module)
    return {name: x for name, x in weights(found).items() if name not in learning}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_eight_examples_are_learned_by_heart(tmp_path: Path) -> None:
    """The frozen head is sharp enough to be sure of a token, as a trained one is."""
    options = {
        "what": ["resampler", "cross_attention", "vision"],
        "steps": 110,
        "rate": 5e-3,
        "warm_up": 10,
        "schedule": "cosine",
    }
    settings, start = config(tmp_path, {"batch": 8}, train=options), base()
    start.model.decoder.head.weight.data.mul_(8)
    train(settings, [ListSource(captions(8))], start=start)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert rows[0]["loss"] > 2 and rows[-1]["loss"] < 0.05


def test_what_is_frozen_stays_bit_for_bit_and_gates_move_from_zero(tmp_path: Path) -> None:
    settings = config(tmp_path, train=LEARNS)
    before, after = (
        stage(settings, [ListSource(captions(8))]),
        train(settings, [ListSource(captions(8))]),
    )
    assert digest(frozen(before)) == digest(frozen(after))
    names = [name for name in trained(after.module) if "gate" in name]
    assert names and all(after.module.get_parameter(name).item() != 0 for name in names)
    assert all(before.module.get_parameter(name).item() == 0 for name in names)
    learned = weights(after)
    moved = [n for n, x in weights(before).items() if not torch.equal(x, learned[n])]
    assert set(moved) == set(trained(after.module))


class Killed(Exception):
    """Stands for a machine that goes off."""


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends within the step of this number, its gradients half made."""

    def schedule(at: int, config: Any) -> float:
        if at == step:
            raise Killed
        return 1.0

    monkeypatch.setattr("flamingo_model.training.optimise.schedule", schedule)


def two_sets(folder: Path, name: str, **train: Any) -> Config:
    return config(
        folder,
        {"path": "a", "batch": 3, "augment": ["flip", "colour"], "p_next": 0.5},
        {"path": "b", "batch": 2, "weight": 0.2, "leading_space": 0.5, "max_media": 2},
        train={"steps": 5, "save_every": 2, "rate": 1e-2, **train},
        output={"folder": name},
    )


def sources() -> list[ListSource]:
    """The second has a document of which a window is drawn."""
    long = Document(tuple(part for found in captions(4) for part in found.parts), "long")
    return [ListSource(captions(7), bad=frozenset({3})), ListSource([*captions(3), long])]


@pytest.mark.parametrize(
    ("accumulation", "step"), [*(("accumulate", step) for step in range(1, 5)), ("round_robin", 3)]
)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_weights_and_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, accumulation: str
) -> None:
    options = {"accumulation": accumulation, "max_bad_share": 1.0}
    with monkeypatch.context() as patch:
        stop_after(-1, patch)
        whole = train(two_sets(tmp_path, "whole", **options), sources())
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        with pytest.raises(Killed):
            train(two_sets(tmp_path, "killed", **options), sources())
        stop_after(-1, patch)
        resumed = train(two_sets(tmp_path, "killed", workers=2, **options), sources())
    assert same(weights(whole), weights(resumed))
    curves = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "killed")]
    for row in (*curves[0], *curves[1]):
        del row["seconds"]
    assert curves[0] == curves[1] and len(curves[0]) == 5


def test_only_the_last_two_states_are_kept_and_no_part_of_one(tmp_path: Path) -> None:
    train(config(tmp_path, train={"steps": 5, "save_every": 1}), [ListSource(captions(4))])
    files = sorted(path.name for path in (tmp_path / "run").glob("state*"))
    assert files == ["state-00000004.pt", "state-00000005.pt"]


def test_a_run_goes_on_from_the_state_before_a_broken_one(tmp_path: Path) -> None:
    settings = config(tmp_path, train={"steps": 4, "save_every": 2})
    first = train(settings, [ListSource(captions(4))])
    broken = tmp_path / "run" / "state-00000004.pt"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert same(weights(train(settings, [ListSource(captions(4))])), weights(first))


def test_the_state_of_another_config_is_refused_by_name(tmp_path: Path) -> None:
    train(config(tmp_path, train={"steps": 1}), [ListSource(captions(4))])
    with pytest.raises(StateError, match="another config.*--restart"):
        train(config(tmp_path, train={"steps": 2, "seed": 5}), [ListSource(captions(4))])


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    states = States(tmp_path)
    write_atomically({"step": 1}, tmp_path / "state-00000001.pt")
    with pytest.raises(Exception, match="pickle"):
        write_atomically({"step": lambda: 2}, tmp_path / "state-00000001.pt")
    assert states.newest() == {"step": 1}


def test_gradients_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    start = base()
    start.model.resampler.latents.data.fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"step 1: .*train.rate"):
        train(config(tmp_path), [ListSource(captions(4))], start=start)


def test_held_out_data_is_measured_and_never_learned(tmp_path: Path) -> None:
    sets = ({"path": "a"}, {"path": "b", "held_out": True})
    settings = config(tmp_path, *sets, train={"steps": 2, "evaluate_every": 1})
    both = train(settings, [ListSource(captions(4)), ListSource(captions(6))])
    alone = config(tmp_path, {"path": "a"}, train={"steps": 2}, output={"folder": "alone"})
    assert same(weights(both), weights(train(alone, [ListSource(captions(4))])))
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert all(row["held_out/b"] > 0 for row in rows)


def test_a_run_leaves_curves_and_tensorboard_s_files(tmp_path: Path) -> None:
    train(config(tmp_path, train={"steps": 2}), [ListSource(captions(4))])
    draw_curves(tmp_path / "run" / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [*(tmp_path / "run" / "tensorboard").glob("events*")]
