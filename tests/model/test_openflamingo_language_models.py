"""OpenFlamingo on MPT-1B (OpenFlamingo-3B) and on LLaMA (its first version), through the loader.

The reference is the language model as others have it, transformers' own or written out plainly,
with OpenFlamingo's block from the tensors of `checkpoint.pt` before every second layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor

from families import INTERVAL, Case, trained_only
from flamingo_model.flamingo import Flamingo
from forward import dense
from language import mosaic_logits
from published import LAYERS, LLAMA, MPT_1B

HEADS = 8
BeforeLayer = Callable[[int, Tensor], Tensor]
each = pytest.mark.parametrize("text", [MPT_1B, LLAMA], ids=["MPT-1B", "LLaMA"])


@dataclass
class Plain:
    """The reference on the files of a case: token t sees picture `seen[t]`, or none for -1."""

    case: Case
    latents: Tensor  # [M, R, dim], which other tests compare
    seen: list[int]

    def __post_init__(self) -> None:
        self.trained = torch.load(self.case.source, weights_only=True)
        lm = Path(str(self.case.parts.lm))
        self.values = json.loads((lm / "config.json").read_text())
        self.beneath = load_file(lm / "model.safetensors")
        embedding = next(k for k in self.trained if k.endswith(("wte.weight", "tokens.weight")))
        self.beneath[embedding.removeprefix("lang_encoder.")] = self.trained[embedding]

    def before_layer(self, layer: int, x: Tensor) -> Tensor:
        """open_flamingo's GatedCrossAttentionBlock on x [T, dim], a token after the other."""
        if (layer + 1) % INTERVAL:
            return x
        prefix = f"lang_encoder.{LAYERS[self.values['model_type']]}.{layer}.gated_cross_attn_layer."
        w = {k.removeprefix(prefix): v for k, v in self.trained.items() if k.startswith(prefix)}
        q = norm(x, w, "attn.norm") @ w["attn.to_q.weight"].T
        rows = [self.attended(q[t], w, self.seen[t]) for t in range(len(x))]
        x = x + torch.stack(rows) @ w["attn.to_out.weight"].T * w["attn_gate"].tanh()
        hidden = F.gelu(norm(x, w, "ff.0") @ w["ff.1.weight"].T) @ w["ff.3.weight"].T
        return x + hidden * w["ff_gate"].tanh()

    def attended(self, q: Tensor, w: dict[str, Tensor], picture: int) -> Tensor:
        if picture < 0:
            return torch.zeros_like(q)
        k, v = (self.latents[picture] @ w["attn.to_kv.weight"].T).chunk(2, -1)
        parts = zip(*(x.chunk(HEADS, -1) for x in (q, k, v)), strict=True)
        return torch.cat([(k @ q / len(q) ** 0.5).softmax(0) @ v for q, k, v in parts])

    def logits(self, ids: list[int]) -> Tensor:
        if self.values["model_type"] == "mosaic_gpt":
            return mosaic_logits(self.values, self.beneath, ids, self.before_layer)
        return self.llama(ids)

    def llama(self, ids: list[int]) -> Tensor:
        """transformers', whose layers get what the block before them gives."""
        num_rows = len(self.beneath["model.embed_tokens.weight"])
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**self.values | {"vocab_size": num_rows})).eval()
        head = self.beneath["lm_head.weight"]
        rows = torch.cat([head, head.new_zeros(num_rows - len(head), head.shape[1])])
        model.load_state_dict(self.beneath | {"lm_head.weight": rows})
        for number, layer in enumerate(model.model.layers):
            layer.register_forward_pre_hook(hook(self.before_layer, number), with_kwargs=True)
        return model(torch.tensor([ids])).logits[0]


def hook(before_layer: BeforeLayer, number: int) -> Callable[..., object]:
    return lambda module, args, kwargs: ((before_layer(number, args[0][0])[None],), kwargs)


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def opened(folder: Path, text: dict[str, object]) -> tuple[Case, Flamingo]:
    case = trained_only(folder, text, "openflamingo-v1" if text is LLAMA else "openflamingo")
    return case, case.open().load()


@torch.no_grad()
@each
def test_with_pictures_it_is_the_reference(tmp_path: Path, text: dict[str, object]) -> None:
    case, model = opened(tmp_path, text)
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = model.config.decoder.vocab_size - 2
    ids, seen = [5, image, 6, 7, image, 8, 9], [-1, 0, 0, 0, 1, 1, 1]
    expected = Plain(case, model.encode_media(pixels), seen).logits(ids)
    found, known = dense(model, ids, pixels, image), model.config.decoder.vocab_size - 3
    torch.testing.assert_close(found[:, :known], expected[:, :known], rtol=1e-4, atol=1e-5)
    blind = Plain(case, model.encode_media(pixels), [-1] * len(ids)).logits(ids)
    assert float((expected - blind).abs().max()) > 1e-2


@torch.no_grad()
@each
def test_with_closed_gates_it_is_the_language_model_alone(
    tmp_path: Path, text: dict[str, object]
) -> None:
    case, _ = opened(tmp_path, text)
    trained = torch.load(case.source, weights_only=True)
    torch.save({k: v * 0 if k.endswith("_gate") else v for k, v in trained.items()}, case.source)
    model, ids = case.open().load(), [5, 6, 7, 8]
    plain = Plain(case, torch.zeros(0), [-1] * len(ids))
    known = model.config.decoder.vocab_size - 3
    found = dense(model, ids, torch.randn(1, 1, 3, 32, 32), known + 1)
    torch.testing.assert_close(found[:, :known], plain.logits(ids)[:, :known], rtol=1e-4, atol=1e-5)


@each
def test_new_tokens_have_rows_where_the_file_has_them(
    tmp_path: Path, text: dict[str, object]
) -> None:
    """MPT-1B's head is its embedding; LLaMA's has no rows for them, so they are never said."""
    _, model = opened(tmp_path, text)
    logits = model.logits(torch.randn(20, model.config.decoder.dim))
    is_muted = (logits[:, -3:] < logits[:, :-3].amin(-1, keepdim=True)).all().item()
    assert is_muted == (text is LLAMA)
    assert model.config.decoder.query_key_norm == (text is MPT_1B)
