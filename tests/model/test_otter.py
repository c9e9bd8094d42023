"""Otter's checkpoints, in all their forms, are the model they were written from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flamingo_model.checkpoints.otter import open_otter, open_otter_weights
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.flamingo import Flamingo
from flamingo_server.checkpoints import load_checkpoint
from flamingo_server.config import Settings
from forward import dense
from golden_sets import model_and_tokenizer
from published import (
    CLIP,
    LLAMA,
    MPT,
    MPT_1B,
    OTTER,
    Weights,
    added,
    language,
    source,
    tower,
    wrapped,
    write_clip,
    write_lm,
    write_tokenizer,
)

KINDS = {"llama": (LLAMA, 2), "mpt": (MPT, 2), "mosaic_gpt": (MPT_1B, 1)}
KEY = "lang_encoder.model.layers.1"


class Written:
    """A source model and its folder, as published."""

    def __init__(self, folder: Path, kind: str = "llama", num_frames: int = 0) -> None:
        self.folder, self.kind = folder, kind
        self.text, self.interval = KINDS[kind]
        self.num_known = write_tokenizer(folder)
        self.num_rows = self.num_known + 4  # as many as Otter's tokenizer would have with padding
        self.model = source(self.text, self.interval, self.num_rows, num_frames)
        self.state = added(self.model, kind, OTTER, self.interval)
        self.state |= wrapped(language(self.model, kind), kind)
        self.state |= {f"vision_encoder.{k}": v for k, v in tower(self.model).items()}
        self.values: dict[str, Any] = {
            "model_type": "otter",
            "architectures": ["OtterForConditionalGeneration"],
            "cross_attn_every_n_layers": self.interval,
            "vision_config": json.loads((CLIP / "config.json").read_text()),
            "text_config": self.text | {"vocab_size": self.num_rows},
        }

    def write(self, **changes: Any) -> Path:
        (self.folder / "config.json").write_text(json.dumps(self.values | changes))
        torch.save(self.state, self.folder / "pytorch_model.bin")
        return self.folder

    def trained(self) -> Weights:
        """What `final_weights.pt` holds."""
        kept = ("perceiver.", "lang_encoder.model.embed", "lang_encoder.lm_head")
        names = [n for n in self.state if n.startswith((*kept, "lang_encoder.transformer.wte"))]
        names += [n for n in self.state if ".gated_cross_attn_layer." in n]
        return {name: self.state[name] for name in names}


def assert_same_logits(found: Flamingo, expected: Flamingo, num_frames: int = 1) -> None:
    image = found.config.decoder.vocab_size - 3
    ids, pixels = [5, image, 6, 7, image, 8, 9], torch.randn(2, num_frames, 3, 32, 32)
    theirs = dense(expected, ids, pixels, image)
    torch.testing.assert_close(dense(found, ids, pixels, image), theirs)
    assert not torch.allclose(dense(found, ids, pixels + 1, image)[2:], theirs[2:], atol=1e-3)


def refused(said: str, written: Written, **changes: Any) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_otter(written.write(**changes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_the_model_it_was_written_from(tmp_path: Path, kind: str) -> None:
    written = Written(tmp_path, kind)
    model = open_otter(written.write()).load()
    assert_same_logits(model, written.model)
    assert model.config.vision.transform == "clip"


@pytest.mark.parametrize("kind", KINDS)
def test_final_weights_are_that_model_over_the_ones_beneath(tmp_path: Path, kind: str) -> None:
    written = Written(tmp_path / "lm", kind, num_frames=3)
    beneath = {
        name: tensor[: written.num_known] if "embed" in name or "wte" in name else tensor
        for name, tensor in language(written.model, kind).items()
    }
    if "lm_head.weight" in beneath:
        beneath["lm_head.weight"] = beneath["lm_head.weight"][: written.num_known]
    beneath = {name: tensor.clone() for name, tensor in beneath.items()}
    lm = write_lm(tmp_path / "lm", written.text, beneath, written.num_known)
    torch.save(written.trained(), tmp_path / "final_weights.pt")
    opened = open_otter_weights(
        tmp_path / "final_weights.pt",
        lm,
        write_clip(tmp_path / "clip", written.model),
        KINDS[kind][1],
    )
    assert_same_logits(opened.load(), written.model, num_frames=3)


def test_a_films_frames_have_their_embeddings(tmp_path: Path) -> None:
    written = Written(tmp_path, num_frames=4)
    model = open_otter(written.write(max_num_frames=4)).load()
    assert_same_logits(model, written.model, num_frames=4)
    frames = written.state["perceiver.frame_embs"]
    assert torch.equal(model.resampler.time(3), frames[:3].unsqueeze(1))


def test_a_still_picture_is_frame_one_of_a_film(tmp_path: Path) -> None:
    written = Written(tmp_path, num_frames=4)
    model = open_otter(written.write()).load()
    assert model.config.resampler.num_time_embeddings == 4
    assert_same_logits(model, written.model)


def test_promised_frames_that_are_missing_are_named(tmp_path: Path) -> None:
    refused("missing: ['perceiver.frame_embs']", Written(tmp_path), max_num_frames=4)


def test_shards_and_safetensors_are_the_same_folder(tmp_path: Path) -> None:
    written = Written(tmp_path)
    folder, names = written.write(), sorted(written.state)
    (folder / "pytorch_model.bin").unlink()
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: written.state[name] for name in own}, folder / shard)
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_logits(open_otter(folder).load(), written.model)


def test_tokens_stand_in_otters_order(tmp_path: Path) -> None:
    written = Written(tmp_path)
    model, tokenizer = model_and_tokenizer(open_otter(written.write()))
    ids = [tokenizer.token_to_id(t) for t in ("<|endofchunk|>", "<image>", "<answer>")]
    assert ids == [written.num_known + i for i in range(3)]
    assert model.config.tokens.end_of_text == "<|endofchunk|>"
    assert tokenizer.token_to_id("<PAD>") is None


def test_openflamingo_in_this_form_has_no_answer_token(tmp_path: Path) -> None:
    written = Written(tmp_path)
    tokenizer = open_otter(written.write(model_type="flamingo")).tokenizer
    added_ids = [tokenizer.token_to_id(t) for t in ("<image>", "<PAD>", "<answer>")]
    assert added_ids == [written.num_known + 1, written.num_known + 2, None]


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for name in ("lang_encoder.model.embed_tokens.weight", "lang_encoder.lm_head.weight"):
        written.state[name] = written.state[name][:-2]
    refused(f"{written.num_rows - 2} rows for {written.num_rows - 1} tokens", written)


def test_the_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    written = Written(tmp_path / "otter")
    folder = written.write()
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert_same_logits(open_otter(folder, tmp_path).load(), written.model)


def test_duplicates_of_a_live_model_are_no_leftovers(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for name, tensor in list(written.state.items()):
        short = name.replace("lang_encoder.model.layers", "lang_encoder.old_decoder_blocks")
        if ".decoder_layer." in name:
            written.state[short.replace(".decoder_layer.", ".")] = tensor
        if ".gated_cross_attn_layer." in name:
            copy = short.replace("old_decoder_blocks", "gated_cross_attn_layers")
            written.state[copy.replace(".gated_cross_attn_layer.", ".")] = tensor
    assert_same_logits(open_otter(written.write()).load(), written.model)


def test_harmless_tensors_are_passed_over(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.state["vision_encoder.vision_model.embeddings.position_ids"] = torch.arange(17)
    written.state["vision_encoder.vision_model.post_layernorm.weight"] = torch.ones(48)
    name = f"{KEY}.decoder_layer.self_attn.rotary_emb.inv_freq"
    written.state[name] = torch.ones(4)
    open_otter(written.write())


@pytest.mark.parametrize(
    "name",
    [
        "perceiver.layers.5.feed_forward.3.weight",
        f"{KEY}.gated_cross_attn_layer.feed_forward.1.weight",
        "vision_encoder.vision_model.embeddings.class_embedding",
        "lang_encoder.lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named_as_in_the_file(tmp_path: Path, name: str) -> None:
    written = Written(tmp_path)
    del written.state[name]
    refused(f"missing: ['{name}']", written)


@pytest.mark.parametrize(
    "name",
    [
        "perceiver.layers.0.0.to_q.weight",
        f"{KEY}.gated_cross_attn_layer.ff.1.weight",
        "vision_encoder.visual.proj",
        "head",
    ],
)
def test_a_leftover_tensor_is_named_as_in_the_file(tmp_path: Path, name: str) -> None:
    written = Written(tmp_path)
    written.state[name] = torch.zeros(1)
    refused(f"leftover: ['{name}']", written)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.state["perceiver.latents"] = torch.zeros(3, 5)
    refused("wrongly shaped: ['perceiver.latents [3, 5]", written)


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("no text_config", {"text_config": None}),
        ("model_type 'bert' is not known", {"text_config": {"model_type": "bert"}}),
        ("the config lacks 'hidden_size'", {"text_config": {"model_type": "llama"}}),
        ("cross_attn_every_n_layers 'two'", {"cross_attn_every_n_layers": "two"}),
    ],
)
def test_a_config_that_makes_no_model_is_refused(
    tmp_path: Path, said: str, changes: dict[str, Any]
) -> None:
    refused(said, Written(tmp_path), **changes)


def test_mpt_may_be_told_by_its_class_alone(tmp_path: Path) -> None:
    written = Written(tmp_path, "mpt")
    text = written.values["text_config"] | {"model_type": ""}
    assert_same_logits(open_otter(written.write(text_config=text)).load(), written.model)


# ---- low-rank updates


def with_lora(written: Written, targets: tuple[str, ...]) -> tuple[Weights, list[str]]:
    """The state as peft names it, factors beside the weights; and the weights they change."""
    state: Weights = {}
    changed = [n for n in written.state if n.startswith("lang_") and n.endswith(targets)]
    for name, tensor in written.state.items():
        theirs = name.replace("lang_encoder.", "lang_encoder.base_model.model.")
        if name in changed:
            module = theirs.removesuffix(".weight")
            out, width = tensor.shape
            state[f"{module}.base_layer.weight"] = tensor
            state[f"{module}.lora_A.default.weight"] = torch.randn(2, width)
            state[f"{module}.lora_B.default.weight"] = torch.randn(out, 2)
        else:
            state[theirs] = tensor
    return state, changed


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("llama", ("q_proj.weight", "v_proj.weight")), ("mpt", ("Wqkv.weight",))],
)
def test_low_rank_updates_are_merged(tmp_path: Path, kind: str, targets: tuple[str, ...]) -> None:
    written = Written(tmp_path, kind)
    state, changed = with_lora(written, targets)
    merged = Written(tmp_path / "merged", kind)
    merged.state = dict(written.state)
    for name in changed:
        module = name.replace("lang_encoder.", "lang_encoder.base_model.model.")[: -len(".weight")]
        down = state[f"{module}.lora_A.default.weight"]
        up = state[f"{module}.lora_B.default.weight"]
        merged.state[name] = written.state[name] + 16 / 2 * (up @ down)
    written.state = state
    found = open_otter(written.write(lora_config={"r": 2, "lora_alpha": 16})).load()
    assert len(changed) == 4 * len(targets)
    assert_same_logits(found, open_otter(merged.write()).load())


def test_low_rank_updates_without_their_scale_are_refused(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.state, _ = with_lora(written, ("q_proj.weight",))
    refused("no lora_config.lora_alpha", written)


def test_the_server_reads_a_folder_of_this_family(tmp_path: Path) -> None:
    settings = Settings(family="otter", model=str(Written(tmp_path).write()))
    model, _ = load_checkpoint(settings, "cpu")
    assert model.config.cross_attention.media_rule == "last_in_prompt"
