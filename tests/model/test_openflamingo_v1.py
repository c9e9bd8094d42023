"""OpenFlamingo's first version, Med-Flamingo and Multimodal-GPT are what they were written from."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flamingo_model.checkpoints.openflamingo_v1 import never_said, open_openflamingo_v1
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.flamingo import Flamingo
from flamingo_server.checkpoints import load_checkpoint
from flamingo_server.config import Settings
from forward import dense
from golden_sets import model_and_tokenizer
from published import (
    LLAMA,
    OPEN_FLAMINGO,
    Weights,
    added,
    language,
    source,
    wrapped,
    write_clip,
    write_lm,
    write_tokenizer,
)

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "to_q", "to_kv", "to_out", "ff.1", "ff.3")
INTERVAL, RANK = 2, 16
PEFT = "lang_encoder.base_model.model."


class Written:
    """A source model, and the three things it is published as."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_known = folder, write_tokenizer(folder / "lm")
        self.model = source(LLAMA, INTERVAL, self.num_known + 3)
        self.beneath = language(self.model, "llama")
        self.trained = added(self.model, "llama", OPEN_FLAMINGO, INTERVAL)
        embedding = self.beneath["model.embed_tokens.weight"]
        self.trained["lang_encoder.model.embed_tokens.weight"] = embedding
        self.file = folder / "checkpoint.pt"

    def load(self, lora: Path | None = None) -> Flamingo:
        known = {
            name: tensor[: self.num_known].clone() if len(tensor) == self.num_known + 3 else tensor
            for name, tensor in self.beneath.items()
        }
        lm = write_lm(self.folder / "lm", LLAMA, known, self.num_known)
        clip = write_clip(self.folder / "clip", self.model)
        torch.save(self.trained, self.file)
        self.loaded = model_and_tokenizer(open_openflamingo_v1(self.file, lm, clip, INTERVAL, lora))
        return self.loaded[0]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def logits(model: Flamingo) -> torch.Tensor:
    image = model.config.decoder.vocab_size - 2
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return dense(model, [5, image, 6, 7, image, 8, 9], pixels, image)


def test_it_is_the_model_it_was_written_from(written: Written) -> None:
    known = written.num_known
    torch.testing.assert_close(logits(written.load())[:, :known], logits(written.model)[:, :known])


def test_tokens_without_rows_in_the_head_are_never_said(written: Written) -> None:
    model, known = written.load(), written.num_known
    assert never_said(model) == [known, known + 1, known + 2]
    assert never_said(model.to(torch.bfloat16)) == never_said(model)
    found = logits(model)
    assert (found[:, known:].max(-1).values < found[:, :known].min(-1).values).all()
    assert never_said(written.model) == []


def test_new_tokens_stand_in_the_references_order(written: Written) -> None:
    """On LLaMA these are 32000, 32001 and 32002."""
    written.load()
    model, tokenizer = written.loaded
    ids = [tokenizer.token_to_id(t) for t in ("<|endofchunk|>", "<image>", "<PAD>")]
    assert ids == [written.num_known + i for i in range(3)]
    assert model.config.tokens.end_of_text == "</s>"


def test_copies_and_the_one_integer_are_no_leftovers(written: Written) -> None:
    block = re.compile(r"lang_encoder\.model\.layers\.(\d+)\.gated_cross_attn_layer\.")
    for name, tensor in list(written.trained.items()):
        if block.match(name):
            copy = block.sub(r"lang_encoder.gated_cross_attn_layers.\1.", name)
            written.trained[copy] = tensor
    written.trained["vision_encoder.embeddings.position_ids"] = torch.arange(17)
    written.file = written.folder / "model.pt"  # as Med-Flamingo calls it
    known = written.num_known
    torch.testing.assert_close(logits(written.load())[:, :known], logits(written.model)[:, :known])


def test_other_leftovers_and_gaps_are_named(written: Written) -> None:
    written.trained["steps"] = torch.tensor(7)
    with pytest.raises(CheckpointError, match=re.escape("leftover: ['steps']")):
        written.load()
    del written.trained["steps"], written.trained["perceiver.layers.0.0.to_q.weight"]
    with pytest.raises(
        CheckpointError, match=re.escape("missing: ['perceiver.layers.0.0.to_q.weight']")
    ):
        written.load()


# ---- Multimodal-GPT


def inside(written: Written) -> Weights:
    """Everything of the language model with cross-attention, as it is named inside of Flamingo."""
    return wrapped(written.beneath, "llama") | written.trained


def targets(written: Written) -> list[str]:
    """The modules that Multimodal-GPT tunes: in the language model, and nowhere else."""
    names = [n.removesuffix(".weight") for n in inside(written) if n.startswith("lang_encoder.")]
    return [name for name in names if name.endswith(TARGETS)]


def low_rank(written: Written) -> Weights:
    found, weights = dict[str, torch.Tensor](), inside(written)
    for module in targets(written):
        out, width = weights[f"{module}.weight"].shape
        theirs = module.replace("lang_encoder.", PEFT)
        found[f"{theirs}.lora_A.default.weight"] = torch.randn(RANK, width) / 8
        found[f"{theirs}.lora_B.default.weight"] = torch.randn(out, RANK) / 8
    return found


def saved(written: Written, state: Weights, **beside: object) -> Path:
    path = written.folder / "mmgpt-lora.pt"
    with_module = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model_state_dict": with_module} | beside, path)
    return path


def unmerged(model: Flamingo, written: Written, lora: Weights, scale: float) -> Flamingo:
    """Each tuned module also runs its input through A and B, as peft does without merging."""

    def beside(down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda module, inputs, out: out + scale * (inputs[0] @ down.T @ up.T)

    modules = ours_by_theirs(model)
    assert modules.keys() == set(targets(written))
    for name, module in modules.items():
        theirs = name.replace("lang_encoder.", PEFT)
        factors = (lora[f"{theirs}.lora_{kind}.default.weight"] for kind in "AB")
        module.register_forward_hook(beside(*factors))
    return model


def ours_by_theirs(model: Flamingo) -> dict[str, torch.nn.Module]:
    found: dict[str, torch.nn.Module] = {}
    parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    for number, layer in enumerate(model.decoder.layers):
        prefix = f"lang_encoder.model.layers.{number}.decoder_layer.self_attn."
        found |= {prefix + theirs: getattr(layer, ours) for ours, theirs in parts.items()}
    for number, block in enumerate(model.blocks()):
        prefix = f"lang_encoder.model.layers.{(number + 1) * INTERVAL - 1}.gated_cross_attn_layer."
        found |= {f"{prefix}attn.{x}": getattr(block, x) for x in ("to_q", "to_kv", "to_out")}
        assert block.feed_forward is not None
        found |= {f"{prefix}ff.1": block.feed_forward.up, f"{prefix}ff.3": block.feed_forward.down}
    return found


def test_merged_updates_are_the_unmerged_ones(written: Written) -> None:
    lora = low_rank(written)
    expected = logits(unmerged(written.load(), written, lora, scale=1))
    found = logits(written.load(saved(written, lora)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    known = written.num_known
    assert not torch.allclose(found[:, :known], logits(written.model)[:, :known], atol=1e-2)


def test_the_merged_weight_is_w_plus_alpha_over_r_times_b_a(written: Written) -> None:
    lora = low_rank(written)
    model = written.load(saved(written, lora, tuning_config={"lora_alpha": 8}))
    name = f"{PEFT}model.layers.3.gated_cross_attn_layer.ff.1"
    product = lora[f"{name}.lora_B.default.weight"] @ lora[f"{name}.lora_A.default.weight"]
    before = written.trained["lang_encoder.model.layers.3.gated_cross_attn_layer.ff.1.weight"]
    found = model.state_dict()["cross_attention.1.feed_forward.up.weight"]
    torch.testing.assert_close(found, before + 8 / RANK * product)


def test_updates_change_nothing_that_they_do_not_name(written: Written) -> None:
    before, after = written.load().state_dict(), None
    after = written.load(saved(written, low_rank(written))).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == len(targets(written)) == 4 * 4 + 2 * 5


def test_a_whole_tensor_among_the_updates_replaces_the_one_before(written: Written) -> None:
    name = "lang_encoder.model.embed_tokens.weight"
    state = low_rank(written) | {name: written.trained[name] + 1}
    model = written.load(saved(written, state))
    assert torch.equal(model.decoder.embed.weight, written.trained[name] + 1)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (f"{PEFT}model.layers.0.mine.lora_A.default.weight", (RANK, 4), "lora_A without lora_B"),
        (f"{PEFT}model.layers.0.mine.weight", (4, 4), "leftover"),
        (
            f"{PEFT}model.layers.0.decoder_layer.self_attn.q_proj.lora_A.default.weight",
            (RANK - 1, 32),
            "different ranks",
        ),
        (
            f"{PEFT}model.layers.0.decoder_layer.self_attn.q_proj.lora_B.default.weight",
            (7, RANK),
            "wrongly shaped",
        ),
    ],
)
def test_updates_that_do_not_fit_are_named(
    written: Written, name: str, shape: tuple[int, ...], said: str
) -> None:
    state = low_rank(written) | {name: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=said):
        written.load(saved(written, state))


def test_updates_to_an_unknown_module_are_named(written: Written) -> None:
    module = "lang_encoder.model.layers.0.mine"
    pair = {
        f"{module}.lora_A.weight": torch.zeros(2, 4),
        f"{module}.lora_B.weight": torch.ones(4, 2),
    }
    with pytest.raises(CheckpointError, match=re.escape(f"updates: ['{module}.weight']")):
        written.load(saved(written, low_rank(written) | pair))


def test_a_file_without_updates_is_refused(written: Written) -> None:
    with pytest.raises(CheckpointError, match="holds no low-rank updates"):
        written.load(saved(written, {}))


def test_the_server_reads_it_with_the_rule_it_was_measured_with(written: Written) -> None:
    written.load()
    settings = Settings(
        family="openflamingo-v1",
        model=str(written.file),
        lm=str(written.folder / "lm"),
        vision=str(written.folder / "clip"),
        cross_attention_interval=INTERVAL,
    )
    model, _ = load_checkpoint(settings, "cpu")
    assert model.config.cross_attention.media_rule == "legacy"
    torch.testing.assert_close(logits(model), logits(written.loaded[0]))
