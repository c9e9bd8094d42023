"""The gated block is the paper's pseudo-code, for a token and the one picture it sees."""

import pytest
import torch
from torch import Tensor

from flamingo_model.attention import no_media
from flamingo_model.config import CrossAttentionConfig
from flamingo_model.cross_attention import GatedCrossAttention

CONFIG = CrossAttentionConfig(num_heads=2, head_dim=8, ff_mult=2)


@pytest.fixture
def block() -> GatedCrossAttention:
    module = GatedCrossAttention(32, 24, CONFIG).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if "norm" in name or "gate" in name:  # as made they are identities and zeros
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return module


def attention(block: GatedCrossAttention, q: Tensor, kv: Tensor) -> Tensor:
    """Multi-head attention of q [T, dim] over kv [R, media_dim], head by head."""
    queries, (keys, values) = block.to_q(q), block.to_kv(kv).chunk(2, dim=-1)
    heads = []
    for q_h, k_h, v_h in zip(*(x.split(8, dim=-1) for x in (queries, keys, values)), strict=True):
        heads.append((q_h @ k_h.T / 8**0.5).softmax(-1) @ v_h)
    return block.to_out(torch.cat(heads, dim=-1))


def gated_xattn_dense(block: GatedCrossAttention, y: Tensor, x: Tensor) -> Tensor:
    """The paper's figure: language features y [T, dim], visual features x [R, media_dim]."""
    alpha_xattn, alpha_dense = block.attention_gate, block.feed_forward_gate
    y = y + alpha_xattn.tanh() * attention(block, q=block.norm(y), kv=block.norm_media(x))
    hidden = block.feed_forward.norm(y) @ block.feed_forward.up.weight.T
    ffw = hidden.clamp(min=0) ** 2 @ block.feed_forward.down.weight.T
    return y + alpha_dense.tanh() * ffw


def test_it_is_the_papers_pseudo_code(block: GatedCrossAttention) -> None:
    y, x = torch.randn(5, 32), torch.randn(4, 24)
    k, v = block.project_media(x)  # [heads, R, head_dim]

    def attend(number: int, q: Tensor) -> Tensor:
        scores = torch.einsum("thd,hrd->thr", q, k) / 8**0.5
        return torch.einsum("thr,hrd->thd", scores.softmax(-1), v)

    expected = gated_xattn_dense(block, y, x)
    torch.testing.assert_close(block(y, 0, attend), expected, rtol=1e-5, atol=1e-5)


def test_new_gates_are_closed() -> None:
    fresh, y = GatedCrossAttention(32, 24, CONFIG), torch.randn(5, 32)
    assert fresh.attention_gate == fresh.feed_forward_gate == 0
    assert torch.equal(fresh(y, 0, lambda number, q: torch.full_like(q, 9.0)), y)


def test_what_sees_nothing_has_its_feed_forward_branch_only(block: GatedCrossAttention) -> None:
    y = torch.randn(5, 32)
    expected = y + block.feed_forward_gate.tanh() * block.feed_forward(y)
    assert torch.equal(block(y, 0, no_media), expected)


def test_only_norms_have_biases(block: GatedCrossAttention) -> None:
    biases = {name for name, _ in block.named_parameters() if name.endswith("bias")}
    assert biases == {"norm.bias", "norm_media.bias", "feed_forward.norm.bias"}


def test_pictures_are_projected_alone(block: GatedCrossAttention) -> None:
    latents = torch.randn(2, 3, 4, 24)
    k, v = block.project_media(latents)
    assert k.shape == v.shape == (2, 3, 2, 4, 8)
    torch.testing.assert_close(block.project_media(latents[1, 2])[0], k[1, 2])
