"""What the config.json of a published language model says, in the decoder's words.

A feature that the decoder does not have raises ValueError; none is passed over.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
MPT_NORMS = ("layernorm", "low_precision_layernorm")  # the second only lowers the precision


class Values(dict[str, Any]):
    """A config.json; what it must say and does not is named."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"the config lacks {key!r}")

    def refuse_unless(self, **wanted: Any) -> None:
        """Features we have in one setting only; that setting is also what silence means."""
        for key, only in wanted.items():
            if (value := self.get(key, only)) != only:
                raise ValueError(f"{key} {value!r} is not supported; supported: {only!r}")

    def activation(self, key: str, default: str) -> str:
        name = self.get(key, default)
        if name not in ACTIVATIONS:
            raise ValueError(f"{key} {name!r} is not known; known: {sorted(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def rope(self) -> Values:
        """Rotary settings, in a table of their own or, in older files, among the others."""
        rope = Values(self.get("rope_parameters") or self.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope type {kind!r} is not supported; supported: 'default'")
        theta = self.get("rope_theta", self.get("rotary_emb_base", 10_000.0))
        share = self.get("partial_rotary_factor", self.get("rotary_pct"))
        return Values({"rope_theta": theta, "partial_rotary_factor": share} | rope)

    def sizes(self, dim: str, layers: str, heads: str, positions: str) -> Fields:
        if self[dim] % self[heads]:
            raise ValueError(f"{dim} {self[dim]} is not a multiple of {heads} {self[heads]}")
        return {
            "vocab_size": self["vocab_size"],
            "dim": self[dim],
            "num_layers": self[layers],
            "num_heads": self[heads],
            "head_dim": self[dim] // self[heads],
            "max_positions": self[positions],
        }

    def usual_sizes(self) -> Fields:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        return self.sizes(*names, "max_position_embeddings")

    def gpt_sizes(self) -> Fields:
        inner = self.get("n_inner") or 4 * self["n_embd"]
        return self.sizes("n_embd", "n_layer", "n_head", "n_positions") | {"ff_dim": inner}


def read_opt(values: Values) -> Fields:
    values.refuse_unless(layer_norm_elementwise_affine=True, tie_word_embeddings=True)
    first, bias = values.get("do_layer_norm_before", True), values.get("enable_bias", True)
    return values.usual_sizes() | {
        "ff_dim": values["ffn_dim"],
        "norm": "layer",
        "norm_eps": 1e-5,
        "block": "pre_norm" if first else "post_norm",
        "final_norm": first and not values.get("_remove_final_layer_norm", False),
        "positions": "learned_offset_2",
        "activation": values.activation("activation_function", "relu"),
        "gated": False,
        "attention_bias": bias,
        "out_bias": bias,
        "feed_forward_bias": bias,
        "embed_dim": values.get("word_embed_proj_dim"),
    }


def read_gpt2(values: Values) -> Fields:
    values.refuse_unless(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    return values.gpt_sizes() | {
        "norm": "layer",
        "norm_eps": values.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "activation": values.activation("activation_function", "gelu_new"),
        "gated": False,
        "attention_bias": True,
        "out_bias": True,
        "feed_forward_bias": True,
        "tie_embeddings": values.get("tie_word_embeddings", True),
    }


def read_gptj(values: Values) -> Fields:
    values.refuse_unless(tie_word_embeddings=False)
    return values.gpt_sizes() | {
        "norm": "layer",
        "norm_eps": values.get("layer_norm_epsilon", 1e-5),
        "block": "parallel_shared",
        "positions": "rotary_interleaved",
        "rotary_dim": values["rotary_dim"],
        "activation": values.activation("activation_function", "gelu_new"),
        "gated": False,
        "feed_forward_bias": True,
        "tie_embeddings": False,
        "head_bias": True,
    }


def read_gpt_neox(values: Values) -> Fields:
    sizes, rope = values.usual_sizes(), values.rope()
    share = rope["partial_rotary_factor"]
    bias = values.get("attention_bias", True)
    return sizes | {
        "ff_dim": values["intermediate_size"],
        "norm": "layer",
        "norm_eps": values.get("layer_norm_eps", 1e-5),
        "block": "parallel" if values.get("use_parallel_residual", True) else "pre_norm",
        "rotary_dim": int(sizes["head_dim"] * (0.25 if share is None else share)),
        "rope_theta": rope["rope_theta"],
        "activation": values.activation("hidden_act", "gelu"),
        "gated": False,
        "attention_bias": bias,
        "out_bias": bias,
        "feed_forward_bias": True,
        "tie_embeddings": values.get("tie_word_embeddings", False),
    }


def read_llama(values: Values) -> Fields:
    values.setdefault("max_position_embeddings", 2048)  # the first LLaMA files do not say it
    sizes, rope = values.usual_sizes(), values.rope()
    if rope["partial_rotary_factor"] not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor {rope['partial_rotary_factor']} is not supported")
    bias = values.get("attention_bias", False)
    return sizes | {
        "ff_dim": values["intermediate_size"],
        "head_dim": values.get("head_dim") or sizes["head_dim"],
        "num_kv_heads": values.get("num_key_value_heads"),
        "rope_theta": rope["rope_theta"],
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "activation": values.activation("hidden_act", "silu"),
        "attention_bias": bias,
        "out_bias": bias,
        "feed_forward_bias": values.get("mlp_bias", False),
        "tie_embeddings": values.get("tie_word_embeddings", False),
    }


def read_mistral(values: Values) -> Fields:
    values.refuse_unless(attention_bias=False, mlp_bias=False, layer_types=None)
    return read_llama(values) | {
        "num_kv_heads": values["num_key_value_heads"],
        "sliding_window": values["sliding_window"],
    }


def mosaic(values: Values, expansion: str) -> Fields:
    """What both generations of MosaicML's model share."""
    values.refuse_unless(no_bias=True, logit_scale=None)
    return values.sizes("d_model", "n_layers", "n_heads", "max_seq_len") | {
        "ff_dim": values.get(expansion, 4) * values["d_model"],
        "norm": "layer",
        "norm_bias": False,
        "norm_eps": 1e-5,
        "activation": "gelu",
        "gated": False,
    }


def read_mpt(values: Values) -> Fields:
    values.refuse_unless(tie_word_embeddings=True)
    if (norm := values.get("norm_type", "layernorm")) not in MPT_NORMS:
        raise ValueError(f"norm_type {norm!r} is not supported; supported: {MPT_NORMS}")
    attention = Values(values.get("attn_config") or {})
    attention.refuse_unless(
        attn_type="multihead_attention",
        alibi=True,
        clip_qkv=None,
        softmax_scale=None,
        prefix_lm=False,
        qk_ln=False,
        alibi_bias_max=8,  # transformers ignores it, MosaicML's own code does not
    )
    return mosaic(values, "expansion_ratio") | {
        "norm_eps": values.get("layer_norm_epsilon", 1e-5),
        "positions": "alibi",
    }


def read_mosaic_gpt(values: Values) -> Fields:
    """MPT-1B, which transformers itself never learned to run."""
    values.refuse_unless(attn_clip_qkv=None, softmax_scale=None, prefix_lm=False)
    if not values["alibi"]:
        raise ValueError("alibi False is not supported; supported: True")
    return mosaic(values, "mlp_ratio") | {
        "positions": "alibi_unrounded",
        "alibi_max_bias": values.get("alibi_bias_max", 8),
        "query_key_norm": values["attn_qk_ln"],
    }
