"""CLIP's picture tower, from transformers, which is imported only where one is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .vision_config import VisionConfig


class ClipTower(nn.Module):
    """[N, 3, size, size] → [N, S, dim]: the patches as the last layer leaves them.

    Without CLIP's final norm; the class token stands before the patches if the config keeps it
    (flamingo-mini does, OpenFlamingo does not).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        tower = build_clip(config)
        self.embeddings = tower.embeddings
        self.pre_layrnorm = tower.pre_layrnorm  # their spelling, in every published file
        self.encoder = tower.encoder
        # Computed, so in no file: it must be real even where the weights are still to come.
        ids = torch.arange(config.num_patches + 1, device="cpu").unsqueeze(0)
        self.embeddings.position_ids = ids
        self.num_skipped = 0 if config.keep_class_token else 1

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.pre_layrnorm(self.embeddings(pixels))  # [N, 1 + patches, dim]
        out: Tensor = self.encoder(inputs_embeds=hidden).last_hidden_state
        return out[:, self.num_skipped :]


def build_clip(config: VisionConfig) -> Any:
    """With random weights; Any, because transformers moved these modules between versions."""
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModel
    except ImportError as error:
        raise ImportError("a CLIP tower needs transformers: flamingo-server[clip]") from error
    model: Any = CLIPVisionModel(CLIPVisionConfig(hidden_size=config.dim, **vit_sizes(config)))
    return getattr(model, "vision_model", model)


def vit_sizes(config: VisionConfig) -> dict[str, Any]:
    """A tower's config in transformers' words, all but its width, which has several names."""
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ff_dim,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
    }
