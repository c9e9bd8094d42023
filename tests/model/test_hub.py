"""Published names become networks: every part is fetched from the hub, once, or asked for."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from families import LLAMA, MPT, MPT_1B, Case, flamingo_mini, golden, otter, trained_only
from flamingo_model.checkpoints import locating
from flamingo_model.checkpoints.families import Parts
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.checkpoints.published import PUBLISHED, Published
from flamingo_model.checkpoints.weights import CheckpointError
from golden_sets import GOLDEN
from hub import Hub, files, put
from tiny import save_tiny

CLIP = "openai/clip-vit-large-patch14"
TABLE = {model.name: model for model in PUBLISHED}
NEOX = "togethercomputer/RedPajama-INCITE-{}-3B-v1"
BENEATH: dict[str, Callable[[Path], Case]] = {
    "anas-awadalla/mpt-1b-redpajama-200b": lambda folder: trained_only(folder, MPT_1B),
    "anas-awadalla/mpt-1b-redpajama-200b-dolly": lambda folder: trained_only(folder, MPT_1B),
    NEOX.format("Base"): lambda folder: golden("of_neox_x2", 2),
    NEOX.format("Instruct"): lambda folder: golden("of_neox_x2", 2),
    "anas-awadalla/mpt-7b": lambda folder: trained_only(folder, MPT),
}
"""A tiny stand-in for each language model, of the same kind."""
OTTERS = [model for model in PUBLISHED if model.family == "otter"]
TRAINED = [model for model in PUBLISHED if model.language_model in BENEATH]


def part(case: Case, name: str) -> Path:
    return Path(getattr(case.parts, name))


def hub_of(model: Published, case: Case, cache: Path) -> Hub:
    """The checkpoint's repository, its language model's and the CLIP's."""
    repositories = {
        model.name: {model.weights: case.source},
        model.language_model: files(part(case, "lm")),
        CLIP: files(part(case, "vision")),
    }
    return Hub(cache, repositories)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


@pytest.fixture
def intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins have a cross-attention block before every second layer."""
    table = [replace(m, interval="2") if m.family != "mllama" else m for m in PUBLISHED]
    monkeypatch.setattr(locating, "PUBLISHED", table)


@pytest.mark.usefixtures("intervals")
@pytest.mark.parametrize("model", TRAINED, ids=lambda model: model.name)
def test_a_checkpoint_in_parts_is_put_together_by_its_name(
    model: Published, tmp_path: Path
) -> None:
    case = BENEATH[model.language_model](tmp_path / "made")
    hub = hub_of(model, case, tmp_path / "cache")
    opened = open_checkpoint(model.name, download=hub.download)
    assert same(opened.load().state_dict(), case.open().load().state_dict())
    assert opened.config.name == model.name and opened.config.templates == model.template
    assert hub.asked() == [model.language_model, CLIP, model.name]
    assert open_checkpoint(model.name, download=hub.download).config == opened.config
    assert len(hub.calls) == 3  # the second time all is in the cache


@pytest.mark.parametrize("model", TRAINED, ids=lambda model: model.name)
def test_the_interval_is_the_tables(model: Published, tmp_path: Path) -> None:
    case = BENEATH[model.language_model](tmp_path / "made")
    hub = hub_of(model, case, tmp_path / "cache")
    if model.interval == "2":
        opened = open_checkpoint(model.name, download=hub.download)
        assert opened.config.cross_attention.interval == 2
    else:
        with pytest.raises(CheckpointError, match=f"cross-attention every {model.interval} layers"):
            open_checkpoint(model.name, download=hub.download)


@pytest.mark.usefixtures("intervals")
@pytest.mark.parametrize(
    "name", ["openflamingo/OpenFlamingo-9B-deprecated", "med-flamingo/med-flamingo"]
)
def test_a_gated_language_model_is_asked_for_before_anything_is_fetched(
    name: str, tmp_path: Path
) -> None:
    model, case = TABLE[name], trained_only(tmp_path / "made", LLAMA, "openflamingo-v1")
    hub = hub_of(model, case, tmp_path / "cache")
    del hub.repositories[model.language_model]
    with pytest.raises(CheckpointError, match="give its folder with --lm"):
        open_checkpoint(name, download=hub.download)
    assert name not in hub.asked() and CLIP not in hub.asked()
    opened = open_checkpoint(name, parts=Parts(lm=case.parts.lm), download=hub.download)
    assert same(opened.load().state_dict(), case.open().load().state_dict())
    assert opened.config.cross_attention.media_rule == "legacy"


def test_another_language_model_may_be_named_on_the_hub(tmp_path: Path) -> None:
    model, case = TABLE["openflamingo/OpenFlamingo-4B-vitl-rpj3b"], golden("of_neox_x2", 2)
    hub = hub_of(model, case, tmp_path / "cache")
    hub.repositories["my/own"] = hub.repositories.pop(model.language_model)
    opened = open_checkpoint(model.name, parts=Parts(lm="my/own"), download=hub.download)
    assert opened.config.decoder.num_layers == 4 and "my/own" in hub.asked()


@pytest.mark.parametrize("model", OTTERS, ids=lambda model: model.name)
def test_otters_come_whole_but_for_some_tokenizers(model: Published, tmp_path: Path) -> None:
    text = MPT if "MPT" in model.name else LLAMA
    case = otter(tmp_path / "made", text)
    hub = Hub(tmp_path / "cache", {model.name: files(case.source)})
    words = {"tokenizer.json": hub.repositories[model.name].pop("tokenizer.json")}
    if "/" in model.language_model:
        hub.repositories[model.language_model] = words | {"model.safetensors": Path("huge")}
        parts = Parts()
    else:
        with pytest.raises(CheckpointError, match="stands on LLaMA-7B.*give its folder with --lm"):
            open_checkpoint(model.name, download=hub.download)
        (tmp_path / "words").mkdir()
        shutil.copyfile(words["tokenizer.json"], tmp_path / "words" / "tokenizer.json")
        parts = Parts(lm=str(tmp_path / "words"))
    opened = open_checkpoint(model.name, parts=parts, download=hub.download)
    assert same(opened.load().state_dict(), case.open().load().state_dict())
    assert opened.config.name == model.name


@pytest.mark.parametrize("name", ["idefics-9b", "idefics-9b-instruct", "idefics-80b"])
def test_idefics_comes_from_one_repository_without_other_formats(name: str, tmp_path: Path) -> None:
    name = f"HuggingFaceM4/{name}"
    theirs = files(GOLDEN / "idefics_qkln") | {"pytorch_model-00001-of-00002.bin": Path("huge")}
    hub = Hub(tmp_path, {name: theirs})
    opened = open_checkpoint(name, download=hub.download)
    expected = open_checkpoint(GOLDEN / "idefics_qkln")
    assert same(opened.load().state_dict(), expected.load().state_dict())
    assert opened.config.name == name and hub.asked() == [name]


@pytest.mark.parametrize("name", ["dhansmair/flamingo-mini", "dhansmair/flamingo-tiny"])
def test_flamingo_mini_takes_words_but_no_weights_of_its_language_model(
    name: str, tmp_path: Path
) -> None:
    model, case = TABLE[name], flamingo_mini()
    hub = hub_of(model, case, tmp_path)
    hub.repositories[name] = files(case.source)
    hub.repositories[model.language_model] |= {"pytorch_model.bin": Path("huge")}
    opened = open_checkpoint(name, download=hub.download)
    assert same(opened.load().state_dict(), case.open().load().state_dict())


# ---- what is in the cache, and what goes wrong


def idefics(cache: Path) -> Hub:
    return Hub(cache, {"HuggingFaceM4/idefics-9b": files(GOLDEN / "idefics_qkln")})


def test_a_broken_off_download_is_gone_on_with(tmp_path: Path) -> None:
    hub = idefics(tmp_path)
    open_checkpoint("HuggingFaceM4/idefics-9b", download=hub.download)
    shard = next(tmp_path.rglob("model-00002*"))
    shard.unlink()
    open_checkpoint("HuggingFaceM4/idefics-9b", download=hub.download)
    assert len(hub.calls) == 2 and shard.is_file()


def test_a_failed_download_says_whose_and_why(tmp_path: Path) -> None:
    hub = Hub(tmp_path, {})
    with pytest.raises(CheckpointError, match="idefics-9b cannot be downloaded: 401 for"):
        open_checkpoint("HuggingFaceM4/idefics-9b", download=hub.download)


def test_a_repository_without_weights_is_said_to_be_so(tmp_path: Path) -> None:
    hub = Hub(tmp_path, {"HuggingFaceM4/idefics-9b": {}})
    with pytest.raises(CheckpointError, match=re.escape("idefics-9b has no whole weights")):
        open_checkpoint("HuggingFaceM4/idefics-9b", download=hub.download)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real library, with an empty cache of its own and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_the_librarys_own_cache_is_enough_without_the_network(hub_cache: Path) -> None:
    model, case = TABLE["openflamingo/OpenFlamingo-4B-vitl-rpj3b"], golden("of_neox_x2", 2)
    put(hub_cache, model.name, {model.weights: case.source})
    put(hub_cache, model.language_model, files(part(case, "lm")))
    put(hub_cache, CLIP, files(part(case, "vision")))
    opened = open_checkpoint(model.name)
    assert same(opened.load().state_dict(), case.open().load().state_dict())


@pytest.mark.usefixtures("hub_cache")
def test_without_cache_and_network_one_line_says_what_to_give() -> None:
    with pytest.raises(CheckpointError, match="mpt-7b cannot be downloaded: .* folder with --lm"):
        open_checkpoint("openflamingo/OpenFlamingo-9B-vitl-mpt7b")


def never(*_: object, **__: object) -> str:
    raise AssertionError("asked the hub")


@pytest.mark.parametrize("model", [m for m in PUBLISHED if not m.can_load], ids=lambda m: m.name)
def test_a_family_without_a_loader_is_said_before_any_download(model: Published) -> None:
    with pytest.raises(CheckpointError, match=f"{model.family}, which this version cannot load"):
        open_checkpoint(model.name, download=never)


def test_multimodal_gpt_says_which_files_to_give() -> None:
    with pytest.raises(CheckpointError, match="is not on the hub: give its file as --lora over"):
        open_checkpoint("Multimodal-GPT", download=never)


def test_a_published_name_keeps_its_family_and_refuses_useless_parts() -> None:
    with pytest.raises(CheckpointError, match="is of the family idefics, not otter"):
        open_checkpoint("HuggingFaceM4/idefics-9b", "otter", download=never)
    with pytest.raises(CheckpointError, match="idefics has no use for lm"):
        open_checkpoint("HuggingFaceM4/idefics-9b", parts=Parts(lm="my/own"), download=never)


def test_what_is_on_this_disk_needs_no_hub(tmp_path: Path) -> None:
    assert open_checkpoint("embedded", download=never).config.name == "flamingo-emoji"
    assert open_checkpoint(save_tiny(tmp_path), download=never).config.name == "tiny"


def test_every_published_checkpoint_that_can_be_fetched_is_tried_here() -> None:
    tried = {m.name for m in (*TRAINED, *OTTERS)}
    tried |= {m.name for m in PUBLISHED if m.family in ("idefics", "flamingo-mini")}
    tried |= {"openflamingo/OpenFlamingo-9B-deprecated", "med-flamingo/med-flamingo"}
    assert tried == {m.name for m in PUBLISHED if m.can_load and m.is_on_hub}
