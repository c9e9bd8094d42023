"""The adapter's file, the model that it belongs to, and fusing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import FLAMINGO, adapter, card, low_rank, replacements, write
from flamingo_model.adapters import (
    FORMAT,
    Adapter,
    AdapterCard,
    AdapterError,
    base_digest,
    check_base,
    fuse,
    read_adapter,
    save_adapter,
    unfuse,
)
from flamingo_model.checkpoints.native import open_native, save_native
from flamingo_model.packing import pack_model
from forward import dense, pictures
from tiny import tiny_model, tiny_tokenizer

MODEL = tiny_model()
DIGEST = base_digest(MODEL)
GATE = "cross_attention.0.attention_gate"
UP = "decoder.layers.0.up"
IDS = [2, 70, 80, 1, 2, 90, 100, 110]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return dense(model, IDS, pictures(2))  # type: ignore[arg-type]


def everything(seed: int = 1) -> dict[str, Tensor]:
    """All that training can change."""
    parts = (*FLAMINGO, "vision.", "decoder.embed.", "decoder.head.")
    return replacements(MODEL, seed, *parts) | low_rank(MODEL, seed)


def edited(path: Path, metadata: dict[str, str]) -> Path:
    save_file({GATE: torch.ones(())}, path, metadata)
    return path


# ---- the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = everything()
    tensors[GATE] = tensors[GATE].bfloat16()
    written = replace(card(MODEL), config={"steps": 3}, metrics={"loss": 0.5}, lora_rank=2)
    save_adapter(tmp_path / "a", tensors, written)
    found = read_adapter(tmp_path / "a")
    assert found.card == written and found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[n], t) for n, t in tensors.items())
    assert found.tensors[GATE].dtype == torch.bfloat16
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_card_may_hold_paths_and_tuples(tmp_path: Path) -> None:
    config = {"folder": Path("runs"), "parts": ("resampler", "lora")}
    save_adapter(tmp_path / "a", {GATE: torch.ones(())}, card(MODEL, config=config))
    found = read_adapter(tmp_path / "a").card.config
    assert found == {"folder": "runs", "parts": ["resampler", "lora"]}


def test_views_of_one_tensor_can_be_written(tmp_path: Path) -> None:
    both = torch.randn(4, 24)
    save_adapter(
        tmp_path / "a", {"resampler.latents": both.T[:, :2].T, GATE: both[0, 0]}, card(MODEL)
    )
    assert torch.equal(read_adapter(tmp_path / "a").tensors["resampler.latents"], both[:2])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", MODEL, {GATE: torch.ones(())})
    before = path.read_bytes()
    with pytest.raises(AdapterError, match="NaN"):
        write(path, MODEL, {GATE: torch.tensor(torch.nan)})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_file_may_be_replaced_once_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", MODEL, {GATE: torch.ones(())})
    found = read_adapter(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert found.tensors[GATE] == 1


def test_a_path_that_names_nothing_is_no_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="^mine: there is no such file$"):
        read_adapter(tmp_path / "none", "mine")
    with pytest.raises(AdapterError, match="not a whole adapter"):
        read_adapter(tmp_path)


CARD = json.dumps({"base_digest": "0" * 64})
META = {"format": FORMAT, "card": CARD}


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "lacks 'flamingo-adapter-1'"),
        ({**META, "format": "flamingo-adapter-9"}, "lacks 'flamingo-adapter-1'"),
        ({"format": FORMAT}, "names no base model"),
        ({**META, "card": "{"}, "not a whole adapter"),
        ({**META, "card": "[" * 10_000}, "not a whole adapter"),
        ({**META, "card": "[]"}, "names no base model"),
        ({**META, "card": '{"base_digest": 3}'}, "names no base model"),
        ({**META, "card": '{"base_digest": "0", "colour": 1}'}, r"unknown keys \['colour'\]"),
        ({**META, "card": '{"base_digest": "0", "config": []}'}, "config is"),
        ({**META, "card": '{"base_digest": "0", "lora_alpha": "8"}'}, "lora_alpha is"),
        ({**META, "card": '{"base_digest": "0", "config": {"a": "\\ud800"}}'}, "surrogates"),
        (
            {**META, "card": '{"base_digest": "0", "data": ' + 20 * '{"a": ' + "1" + 21 * "}"},
            "deep",
        ),
    ],
)
def test_a_file_without_a_sound_card_is_refused(
    tmp_path: Path, metadata: dict[str, str], says: str
) -> None:
    with pytest.raises(AdapterError, match=says):
        read_adapter(edited(tmp_path / "a", metadata))


@pytest.mark.parametrize("content", [b"", b"no", bytes(100), b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AdapterError, match="not a whole adapter"):
        read_adapter(tmp_path / "a")


def test_half_of_a_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", MODEL, everything())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="not a whole adapter"):
        read_adapter(path)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(AdapterError):
            read_adapter(path)


@pytest.mark.parametrize(
    ("tensors", "fields", "says"),
    [
        ({}, {}, "changes nothing"),
        ({GATE: torch.tensor(torch.inf)}, {}, "NaN or infinity"),
        ({GATE: torch.tensor(1)}, {}, "not floating-point"),
        ({f"{UP}.lora_A": torch.ones(2, 32)}, {}, "lora_A without lora_B"),
        ({f"{UP}.lora_B": torch.ones(48, 2)}, {}, "lora_B without lora_A"),
        ({f"{UP}.lora_A": torch.ones(2, 32), f"{UP}.lora_B": torch.ones(48, 3)}, {}, "ranks"),
        ({f"{UP}.lora_A": torch.ones(0, 32), f"{UP}.lora_B": torch.ones(48, 0)}, {}, "ranks"),
        (low_rank(MODEL, 1), {"lora_rank": 3}, "not the card's 3"),
        (low_rank(MODEL, 1), {"lora_alpha": None}, "without lora_alpha"),
    ],
)
def test_tensors_that_are_no_adapter_are_neither_written_nor_read(
    tmp_path: Path, tensors: dict[str, Tensor], fields: dict[str, object], says: str
) -> None:
    written = card(MODEL, **fields)
    with pytest.raises(AdapterError, match=says):
        save_adapter(tmp_path / "a", tensors, written)
    values = json.dumps({**vars(written)})
    save_file(tensors, tmp_path / "b", {"format": FORMAT, "card": values})
    with pytest.raises(AdapterError, match=says):
        read_adapter(tmp_path / "b")


def test_numbers_that_json_has_not_are_none(tmp_path: Path) -> None:
    card = '{"base_digest": "0", "metrics": {"a": NaN, "b": 1e999, "c": 0.5}, "lora_alpha": NaN}'
    found = read_adapter(edited(tmp_path / "a", {**META, "card": card})).card
    assert found.metrics == {"a": None, "b": None, "c": 0.5} and found.lora_alpha is None


# ---- the base


def test_the_digest_does_not_depend_on_how_the_base_is_stored(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float32)):
        save_native(model, tiny_tokenizer(), tmp_path / name, dtype)
        opened = open_native(tmp_path / name)
        digests = base_digest(opened.weights), base_digest(opened.load())
        assert digests == (base_digest(model),) * 2 != (DIGEST,) * 2


def test_the_digest_knows_names_shapes_and_every_number() -> None:
    found = {DIGEST}
    for name, tensor in MODEL.state_dict().items():
        if tensor.numel():
            other = tiny_model()
            other.get_parameter(name).data.view(-1)[-1] += 1e-3
            found.add(base_digest(other))
    assert len(found) == 1 + len(MODEL.state_dict())
    one, two = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    two.weight.data = one.weight.data.view(2, 3)
    assert base_digest(one) != base_digest(two) and base_digest(tiny_model()) == DIGEST


def test_a_packed_or_quantised_model_has_no_digest() -> None:
    packed = tiny_model()
    pack_model(packed, "float32")
    with pytest.raises(AdapterError, match="packed"):
        base_digest(packed)
    quantised = torch.nn.Linear(2, 2)
    quantised.register_buffer("scales", torch.ones(2, dtype=torch.int8))
    with pytest.raises(AdapterError, match="quantised"):
        base_digest(quantised)


def test_the_wrong_base_is_refused_in_one_line() -> None:
    other = tiny_model(seed=1)
    found = adapter(other, {GATE: torch.ones(())})
    with pytest.raises(AdapterError, match="another base model.*" + DIGEST[:12]) as caught:
        fuse(tiny_model(), found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"resampler.knob": torch.ones(1)}, "unknown: .*resampler.knob"),
        ({"knob": torch.ones(1)}, "unknown"),
        ({GATE: torch.ones(2)}, r"wrongly shaped: .*attention_gate \[2\] for \[\]"),
        ({"decoder.layers.0.q.weight": torch.ones(32, 32)}, "only low-rank updates"),
        ({"decoder.norm.weight": torch.ones(32)}, "only low-rank updates"),
        ({f"{UP}.lora_A": torch.ones(2, 3), f"{UP}.lora_B": torch.ones(48, 2)}, "wrongly shaped"),
        ({"decoder.embed.lora_A": torch.ones(1, 32), "decoder.embed.lora_B": torch.ones(264, 1)},
         "no linear layer"),
        ({"decoder.norm.lora_A": torch.ones(1, 32), "decoder.norm.lora_B": torch.ones(32, 1)},
         "no linear layer"),
        ({"resampler.latents": torch.ones(4, 24), "resampler.latents.lora_A": torch.ones(1, 24),
          "resampler.latents.lora_B": torch.ones(4, 1)}, "unknown: .*latents.weight"),
        ({"decoder.head.weight": torch.ones(264, 32), "decoder.head.lora_A": torch.ones(1, 32),
          "decoder.head.lora_B": torch.ones(264, 1)}, "both replaced and updated"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_base_is_refused(tensors: dict[str, Tensor], says: str) -> None:
    model = tiny_model()
    with pytest.raises(AdapterError, match=says):
        fuse(model, adapter(MODEL, tensors))
    assert base_digest(model) == DIGEST
    with pytest.raises(AdapterError, match=says):
        check_base(adapter(MODEL, tensors), MODEL.state_dict(), DIGEST)


# ---- fusing


def test_fusing_replaces_and_updates_the_weights_themselves() -> None:
    model, tensors = tiny_model(), everything()
    fuse(model, adapter(MODEL, tensors))
    now, before = model.state_dict(), MODEL.state_dict()
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A" in tensors:
            delta = 4.0 / 2 * (tensors[f"{module}.lora_B"] @ tensors[f"{module}.lora_A"])
            assert torch.allclose(now[name], tensor + delta, atol=1e-6)
        else:
            assert torch.equal(now[name], tensors.get(name, tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unfusing_is_exact(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    before, answer = {k: v.clone() for k, v in model.state_dict().items()}, logits_in(model)
    fused = fuse(model, adapter(MODEL, everything()), digest=DIGEST)
    assert not torch.allclose(logits_in(model), answer, atol=0.1)
    unfuse(fused)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits_in(model), answer) and after[GATE].dtype == dtype


def logits_in(model: torch.nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        return dense(model, IDS, pictures(2).to(dtype))  # type: ignore[arg-type]


def test_a_fused_model_does_not_hold_the_adapters_own_tensors() -> None:
    model, tensors = tiny_model(), {GATE: torch.ones(())}
    fuse(model, adapter(MODEL, tensors))
    tensors[GATE].zero_()
    assert model.state_dict()[GATE] == 1


def test_a_second_adapter_is_refused_until_the_first_is_out() -> None:
    model, found = tiny_model(), adapter(MODEL, everything())
    fused = fuse(model, found)
    with pytest.raises(AdapterError, match="another base"):
        fuse(model, found)
    unfuse(fused)
    unfuse(fuse(model, found))
    assert base_digest(model) == DIGEST


def test_the_adapters_digest_names_what_it_computes() -> None:
    tensors = low_rank(MODEL, 1)
    same = Adapter(AdapterCard("other", name="x", lora_alpha=4.0), dict(reversed(tensors.items())))
    assert adapter(MODEL, tensors).digest == same.digest
    others = [Adapter(AdapterCard("", lora_alpha=8.0), tensors), adapter(MODEL, low_rank(MODEL, 2))]
    assert len({same.digest, *(other.digest for other in others)}) == 3


def test_only_what_was_given_is_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", MODEL, low_rank(MODEL, 1, linears=("q",)))
    assert len(load_file(path)) == 6
