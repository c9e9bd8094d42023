"""One way to open a checkpoint, whatever its family: loaded, quantised and converted alike."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from families import CASES, Case, flamingo_mini, golden, multimodal_gpt, otter, trained_only
from flamingo_model.checkpoints import files
from flamingo_model.checkpoints.families import FAMILIES, Parts
from flamingo_model.checkpoints.native import open_native
from flamingo_model.checkpoints.opening import READERS, open_checkpoint
from flamingo_model.checkpoints.weights import CheckpointError, Weights
from flamingo_model.checkpoints.writing import write_folder
from flamingo_model.config import CROSS_ATTENTION_CHOICES
from flamingo_model.flamingo import Flamingo
from flamingo_server.cli import main
from forward import dense
from golden_sets import GOLDEN
from published import LLAMA


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return CASES[request.param](tmp_path)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def at_once(weights: Weights) -> dict[str, Tensor]:
    """All tensors read, before a reader does anything with them."""
    return {name: weights[name].clone() for name in weights.layout}


def test_what_is_read_tensor_by_tensor_is_what_is_read_at_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case.open().load().state_dict()
    monkeypatch.setattr(files, "all_lazy", at_once)
    assert_same(found, case.open().load().state_dict())


def test_a_checkpoint_opens_without_its_tensors(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some readers compare two copies of a tensor; none keeps what it read."""
    opened = case.open()
    opened.empty()
    assert {tensor.device.type for tensor in opened.weights.layout.values()} == {"meta"}


def test_it_is_loaded_in_the_type_asked_for(case: Case) -> None:
    opened = case.open()
    half, whole = (opened.load(dtype=t).state_dict() for t in (torch.bfloat16, torch.float32))
    assert_same(half, {name: tensor.bfloat16() for name, tensor in whole.items()})


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_decoders_layers_are_quantised_and_nothing_else(case: Case, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    opened = case.open()
    plain, model = opened.load().state_dict(), opened.load(quantize=kind)
    packed = [n for n, m in model.named_modules() if type(m).__module__.startswith("bitsandbytes")]
    assert packed and all(name.startswith("decoder.layers.") for name in packed)
    found = model.state_dict()
    kept = [name for name in plain if not name.startswith("decoder.layers.")]
    assert all(torch.equal(found[name], plain[name]) for name in kept)
    assert all(found[f"{name}.weight"].dtype in (torch.int8, torch.uint8) for name in packed)


def flags(case: Case) -> list[str]:
    given = {name: getattr(case.parts, name) for name in case.parts.given()}
    return [f"--{k.replace('_', '-')}={v}" for k, v in (given | {"family": case.family}).items()]


def test_converted_it_is_a_native_checkpoint_of_the_same_bits(case: Case, tmp_path: Path) -> None:
    opened, target = case.open(), tmp_path / "target"
    main(["convert", str(case.source), str(target), "--shard-bytes", "400KB", *flags(case)])
    native = open_native(target)
    assert len(list(target.glob("*.safetensors"))) > 1 or case.model is None
    assert native.config == opened.config
    assert native.tokenizer.to_str() == opened.tokenizer.to_str()
    assert_same(native.load().state_dict(), opened.load().state_dict())


WRITTEN = ["openflamingo on MPT-1B", "openflamingo-v1", "otter", "otter-weights"]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_it_was_written_from_is_what_is_loaded(tmp_path: Path, name: str) -> None:
    case = CASES[name](tmp_path)
    model, written = case.open().load(), case.model
    assert written is not None
    image = model.config.decoder.vocab_size - (3 if "otter" in model.config.templates else 2)
    found, expected = (answer(m, image) for m in (model, written))
    known = found.shape[-1] - (4 if model.config.decoder.head_bias else 0)
    torch.testing.assert_close(found[:, :known], expected[:, :known])


def answer(model: Flamingo, image: int) -> Tensor:
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return dense(model, [5, image, 6, 7, image, 8, 9], pixels, image)


# ---- which family


def test_every_family_has_a_reader_and_a_case(tmp_path: Path) -> None:
    assert READERS.keys() == FAMILIES.keys()
    assert {name.partition(" on")[0] for name in CASES} >= FAMILIES.keys()


@pytest.mark.parametrize("family", ["otter", "flamingo"])
def test_otters_folders_are_known_by_their_config(tmp_path: Path, family: str) -> None:
    folder = otter(tmp_path, LLAMA).source
    values = json.loads((folder / "config.json").read_text()) | {"model_type": family}
    (folder / "config.json").write_text(json.dumps(values))
    config = open_checkpoint(folder).config
    assert config.cross_attention.media_rule == "last_in_prompt"
    assert config.templates == {"otter": "otter", "flamingo": "openflamingo"}[family]


@pytest.mark.parametrize(
    "name", ["OtterForConditionalGeneration", "FlamingoForConditionalGeneration"]
)
def test_otters_folders_are_known_by_their_architecture(tmp_path: Path, name: str) -> None:
    folder = otter(tmp_path, LLAMA).source
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": None, "architectures": [name]}
    (folder / "config.json").write_text(json.dumps(values))
    assert open_checkpoint(folder).config.cross_attention.media_rule == "last_in_prompt"


def test_flamingo_mini_names_its_own_parts(tmp_path: Path) -> None:
    """facebook/opt-350m and openai/clip-vit-large-patch14, here folders."""
    case, folder = flamingo_mini(), tmp_path / "mini"
    shutil.copytree(case.source, folder, copy_function=shutil.copyfile)
    names = {"lm": case.parts.lm, "clip_model_type": case.parts.vision}
    values = json.loads((folder / "config.json").read_text()) | names
    (folder / "config.json").write_text(json.dumps(values))
    assert_same(open_checkpoint(folder).load().state_dict(), case.open().load().state_dict())


def refused(said: str, source: Path, family: str = "auto", parts: Parts | None = None) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(source, family, parts or Parts())


def test_what_is_lacking_or_of_no_use_is_said(tmp_path: Path) -> None:
    file = GOLDEN / "of_opt_x1" / "checkpoint.pt"
    refused("is a file: say what wrote it with --family (openflamingo, ", file)
    refused(
        "openflamingo needs vision, cross_attention_interval", file, "openflamingo", Parts("lm")
    )
    refused("idefics has no use for lm", GOLDEN / "idefics_qkln", parts=Parts("lm"))
    refused("'none' is not known; known: auto, native, ", file, "none")
    refused("is neither a checkpoint folder nor a published one", tmp_path / "nothing")


def test_a_part_that_is_no_folder_is_named(tmp_path: Path) -> None:
    case = golden("of_opt_x1", 1)
    parts = Parts(str(tmp_path / "lm"), case.parts.vision, 1)
    refused(f"{tmp_path / 'lm'} is no folder: give one with --lm", case.source, case.family, parts)


def test_a_family_given_is_not_guessed_again(tmp_path: Path) -> None:
    refused("is not a native checkpoint", otter(tmp_path).source, "native")


# ---- rules


@pytest.mark.parametrize("rule", CROSS_ATTENTION_CHOICES["media_rule"])
def test_the_rule_of_who_sees_what_may_be_chosen(rule: str) -> None:
    case = golden("of_opt_x1", 1)
    opened = open_checkpoint(case.source, case.family, Parts(*vars(case.parts).values()))
    assert opened.config.cross_attention.media_rule == "last"
    parts = Parts(case.parts.lm, case.parts.vision, 1, media_rule=rule)
    changed = open_checkpoint(case.source, case.family, parts).config
    assert changed.cross_attention.media_rule == rule and changed.vision == opened.config.vision


def test_an_unknown_rule_is_refused() -> None:
    refused(
        "media_rule 'none' is not known", GOLDEN / "idefics_qkln", parts=Parts(media_rule="none")
    )


def test_each_family_is_asked_in_its_own_words(tmp_path: Path) -> None:
    said = {name: make(tmp_path / name).open().config.templates for name, make in CASES.items()}
    assert said["openflamingo on OPT"] == said["openflamingo-v1"] == "openflamingo"
    assert (said["otter"], said["otter-weights"]) == ("otter", "otter")
    assert (said["idefics"], said["flamingo-mini"]) == ("idefics", "flamingo_mini")
    assert said["multimodal-gpt"] == "multimodal_gpt"


# ---- bad tensors among good ones


def test_low_rank_updates_are_merged_as_each_weight_is_read(tmp_path: Path) -> None:
    """W + (alpha / r) · B A, for a weight that the language model's own file holds."""
    case = multimodal_gpt(tmp_path)
    plain = trained_only(tmp_path / "plain", LLAMA, "openflamingo-v1")
    assert plain.model is not None
    lora = torch.load(tmp_path / "lora.pt", weights_only=True)["model_state_dict"]
    before = open_checkpoint(case.source, case.family, Parts(*list(vars(case.parts).values())[:3]))
    name = "lang_encoder.base_model.model.model.layers.1.decoder_layer.self_attn.q_proj"
    up, down = (lora[f"{name}.lora_{x}.default.weight"] for x in "BA")
    expected = before.weights["decoder.layers.1.q.weight"] + 16 / 4 * (up @ down)
    torch.testing.assert_close(case.open().weights["decoder.layers.1.q.weight"], expected)


def test_a_shard_that_is_gone_or_doubled_is_named(tmp_path: Path) -> None:
    folder = otter(tmp_path).source
    (folder / "pytorch_model-1.bin").rename(folder / "elsewhere.bin")
    refused("lacks the shards ['pytorch_model-1.bin']", folder)
    (folder / "pytorch_model-1.bin").write_bytes((folder / "pytorch_model-0.bin").read_bytes())
    refused("in another shard, too", folder)


def test_converting_refuses_what_does_not_fit(tmp_path: Path) -> None:
    folder = otter(tmp_path / "otter").source
    state = torch.load(folder / "pytorch_model-0.bin", weights_only=True)
    torch.save(state | {"mine": torch.zeros(1)}, folder / "pytorch_model-0.bin")
    with pytest.raises(SystemExit, match="leftover: .*'mine'"):
        main(["convert", str(folder), str(tmp_path / "target")])
    assert not (tmp_path / "target").exists()


def test_what_is_written_is_read_again_from_the_new_files(tmp_path: Path) -> None:
    opened = golden("of_neox_x2", 2).open()
    write_folder(opened, tmp_path, torch.bfloat16)
    found = open_native(tmp_path).load().state_dict()
    assert_same(found, opened.load(dtype=torch.bfloat16).float().state_dict())
