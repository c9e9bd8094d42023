"""The decoder computes what transformers' LLaMA and Qwen2 compute with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from flamingo_model.attention import DenseSelfAttention
from flamingo_model.config import DecoderConfig
from flamingo_model.decoder import Decoder
from flamingo_model.positions import reach, rotary, rotate
from published import MODULES

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]])
POSITIONS = torch.arange(12).expand(2, 12)
THEIR_NAMES = MODULES["llama"]
TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def tiny(attention_bias: bool = False, tie: bool = True, theta: float = 10_000.0) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=40,
        dim=32,
        num_layers=3,
        num_heads=2,
        head_dim=16,
        ff_dim=48,
        max_positions=64,
        rope_theta=theta,
        attention_bias=attention_bias,
        tie_embeddings=tie,
    )


def their_name(name: str) -> str:
    """`layers.0.q.weight` → `model.layers.0.self_attn.q_proj.weight`"""
    if not name.startswith("layers."):
        part, kind = name.split(".")
        return f"{TOP[part]}.{kind}"
    _, number, part, kind = name.split(".")
    return f"model.layers.{number}.{THEIR_NAMES[part]}.{kind}"


def random_decoder(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():  # norms and biases too
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder


def theirs(decoder: Decoder) -> PreTrainedModel:
    ours = decoder.config
    fields: dict[str, Any] = dict(
        vocab_size=ours.vocab_size,
        hidden_size=ours.dim,
        intermediate_size=ours.ff_dim,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_heads,
        head_dim=ours.head_dim,
        rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        tie_word_embeddings=ours.tie_embeddings,
    )
    bias = ours.attention_bias
    model = (
        Qwen2ForCausalLM(Qwen2Config(**fields)) if bias else LlamaForCausalLM(LlamaConfig(**fields))
    )
    weights = {their_name(k): v for k, v in decoder.state_dict().items()}
    if ours.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval()


def logits(decoder: Decoder, ids: Tensor, positions: Tensor) -> Tensor:
    return decoder.logits(
        decoder(ids, positions, DenseSelfAttention(*ids.shape, reach(decoder.config)))
    )


@pytest.mark.parametrize("attention_bias", [True, False], ids=["qwen2", "llama"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("theta", [100.0, 1_000_000.0])
def test_logits_equal_transformers(attention_bias: bool, tie: bool, theta: float) -> None:
    decoder = random_decoder(tiny(attention_bias, tie, theta))
    with torch.no_grad():
        expected = theirs(decoder)(IDS).logits
    difference = logits(decoder, IDS, POSITIONS) - expected
    assert difference.norm() / expected.norm() < 1e-5


def test_biases_are_on_queries_keys_and_values_only() -> None:
    biases = {k.split(".")[2] for k in Decoder(tiny(True)).state_dict() if k.endswith("bias")}
    assert biases == {"q", "k", "v"}
    assert not any(k.endswith("bias") for k in Decoder(tiny(False)).state_dict())


def test_a_tied_head_has_no_weights_of_its_own() -> None:
    assert "head.weight" not in Decoder(tiny(tie=True)).state_dict()
    assert "head.weight" in Decoder(tiny(tie=False)).state_dict()


def test_only_distances_between_positions_matter() -> None:
    decoder = random_decoder(tiny())
    shifted = logits(decoder, IDS, POSITIONS + 20)
    torch.testing.assert_close(shifted, logits(decoder, IDS, POSITIONS), rtol=1e-4, atol=1e-4)


def test_rotation_keeps_lengths_and_leaves_position_zero() -> None:
    x = torch.randn(5, 2, 16)
    turned = rotate(x, *rotary(torch.arange(5), 16, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[0], x[0]) and not torch.equal(turned[1], x[1])


def test_flat_tokens_give_what_rows_give() -> None:
    """Shapes before the last are the caller's own: rows [B, T] or a flat batch [N]."""
    decoder = random_decoder(tiny())

    def themselves(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v

    rows = decoder(IDS, POSITIONS, themselves)
    flat = decoder(IDS.flatten(), POSITIONS.flatten(), themselves)
    torch.testing.assert_close(rows.flatten(0, 1), flat, rtol=1e-5, atol=1e-5)
