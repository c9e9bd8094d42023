"""From a config to a result: adapters, checkpoints, low-rank updates, the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_model.checkpoints.native import load_native
from flamingo_model.training.base import load_base
from flamingo_model.training.config import Config
from flamingo_model.training.data.document import Source
from flamingo_model.training.distributed import ALONE
from flamingo_model.training.mixture import Stream
from flamingo_model.training.optimise import trained
from flamingo_model.training.result import write_result
from flamingo_model.training.run import run
from flamingo_model.training.stages.flamingo import FlamingoStage
from flamingo_server.cli import main
from tiny import save_tiny, tiny_config, tiny_model, tiny_tokenizer
from training.made import ListSource, captions, config


@dataclass
class FakeAdapters:
    """Stands for `flamingo_model.adapters`: keeps what it is given."""

    saved: dict[str, Tensor] = field(default_factory=dict)
    card: Any = None

    def base_digest(self, base: Any) -> str:
        return f"digest of {len(base.layout)} tensors"

    def AdapterCard(self, **values: Any) -> SimpleNamespace:
        return SimpleNamespace(**values)

    def save_adapter(self, path: Path, tensors: dict[str, Tensor], card: Any) -> None:
        path.write_bytes(b"adapter")
        self.saved, self.card = dict(tensors), card


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> FakeAdapters:
    fake = FakeAdapters()
    monkeypatch.setattr("flamingo_model.training.result.adapters", fake)
    return fake


def start(folder: Path, **tables: dict[str, Any]) -> Config:
    """A config whose base is the tiny checkpoint, stored in `folder`."""
    save_tiny(folder / "base")
    model = {"base": str(folder / "base")} | tables.pop("model", {})
    return config(folder, model=model, **tables)


def source(num: int = 4) -> Callable[[Any], Source]:
    return lambda dataset: ListSource(captions(num))


def test_an_adapter_holds_what_was_trained_under_the_model_s_own_names(
    tmp_path: Path, adapters: FakeAdapters
) -> None:
    place = run(start(tmp_path, train={"rate": 1e-2}), open_source=source())
    assert place == tmp_path / "run" / "adapter.safetensors" and place.is_file()
    own = tiny_model().state_dict()
    parts = ("resampler.", "cross_attention.")
    assert adapters.saved.keys() == {name for name in own if name.startswith(parts)}
    assert all(adapters.saved[name].shape == own[name].shape for name in adapters.saved)
    assert not torch.equal(adapters.saved["resampler.latents"], own["resampler.latents"])


def test_the_card_says_from_what_on_what_and_how_far(
    tmp_path: Path, adapters: FakeAdapters
) -> None:
    run(start(tmp_path), open_source=source())
    card = adapters.card
    assert card.base_digest == f"digest of {len(tiny_model().state_dict())} tensors"
    assert card.name == "run" and card.config["train"]["steps"] == 4
    assert card.data["datasets"][0]["batch"] == 4 and card.metrics["loss"] > 0
    assert card.lora_rank is card.lora_alpha is None


def test_a_checkpoint_has_every_tensor_and_what_was_frozen_as_it_was_stored(
    tmp_path: Path,
) -> None:
    settings = start(
        tmp_path, train={"precision": "bf16", "rate": 1e-2}, output={"kind": "checkpoint"}
    )
    model, _ = load_native(run(settings, open_source=source()))
    own, found = tiny_model().state_dict(), model.state_dict()
    assert model.config.name == "run"
    for name, tensor in found.items():
        is_frozen = name.startswith(("vision.", "decoder."))
        assert torch.equal(tensor, own[name]) == is_frozen or "norm" in name, name


def test_low_rank_updates_begin_as_nothing_learn_and_are_named_after_their_weights(
    tmp_path: Path, adapters: FakeAdapters
) -> None:
    tables: dict[str, Any] = {"lora": {"rank": 2, "alpha": 4.0, "targets": ["q", "up"]}}
    run(start(tmp_path, train={"what": ["lora"], "rate": 1e-2}, **tables), open_source=source())
    saved, shape = adapters.saved, tiny_config().decoder
    layers = [f"decoder.layers.{i}.{name}" for i in range(shape.num_layers) for name in ("q", "up")]
    assert saved.keys() == {f"{layer}.lora_{side}" for layer in layers for side in "AB"}
    assert saved["decoder.layers.0.up.lora_A"].shape == (2, shape.dim)
    assert saved["decoder.layers.0.up.lora_B"].shape == (shape.ff_dim, 2)
    assert all(saved[f"{layer}.lora_B"].any() for layer in layers)
    assert adapters.card.lora_rank == 2 and adapters.card.lora_alpha == 4.0


def test_fused_into_a_checkpoint_low_rank_updates_compute_the_same(tmp_path: Path) -> None:
    settings = start(
        tmp_path,
        train={"what": ["lora"]},
        lora={"rank": 2, "alpha": 4.0},
        output={"kind": "checkpoint"},
    )
    base = load_base(settings.model, 0)
    streams = [Stream(ListSource(captions(4)), settings.datasets[0], 0)]
    built = FlamingoStage(base, settings, streams, ALONE)
    batch = built.collate(built.mixture.draw(0))
    before = built.losses(batch)[0]
    for parameter in trained(built.module).values():
        torch.nn.init.normal_(parameter, std=0.1)
    changed = built.losses(batch)[0]
    built.module.model, _ = load_native(write_result(base, built.module, settings, "", ALONE))
    torch.testing.assert_close(built.losses(batch)[0], changed)
    assert not torch.allclose(before, changed, atol=1e-2)


def test_parts_may_begin_fresh_from_a_config_and_a_tokenizer_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(tiny_config().to_json())
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = config(
        tmp_path,
        model={"base": str(folder), "fresh": ["vision", "resampler", "cross_attention", "decoder"]},
        train={"stage": "language", "steps": 1},
        output={"kind": "checkpoint"},
    )
    model, _ = load_native(run(settings, open_source=source()))
    assert all(not block.attention_gate.any() for block in model.cross_attention)
    assert model.decoder.embed.weight.std() < 0.03


def test_the_command_trains_from_a_file_and_says_where_the_result_is(
    tmp_path: Path,
    adapters: FakeAdapters,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_tiny(tmp_path / "base")
    (tmp_path / "a.toml").write_text(
        '[model]\nbase = "base"\n[train]\nsteps = 2\n[output]\nfolder = "out"\n'
        '[[datasets]]\npath = "x"\nbatch = 2\noptions = {root = "r"}\n'
    )
    asked: list[Any] = []

    def open_source(*given: Any, **options: Any) -> Source:
        asked.append((*given, options))
        return ListSource(captions(4))

    monkeypatch.setattr("flamingo_model.training.data.source.open_source", open_source)
    main(["train", str(tmp_path / "a.toml")])
    assert asked == [(str(tmp_path / "x"), "auto", {"root": "r"})]
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "out" / "adapter.safetensors"))
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_mistake_in_the_file_is_the_command_s_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[model]\nbase = "base"\n[train]\nstep = 2\n')
    with pytest.raises(SystemExit, match=r"flamingo train: the config lacks \[output\]"):
        main(["train", str(tmp_path / "a.toml")])
