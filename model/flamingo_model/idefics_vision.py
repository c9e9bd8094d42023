"""IDEFICS' picture tower: a CLIP ViT, run by transformers, which only this tower needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .clip import vit_sizes
from .vision_config import VisionConfig


class IdeficsTower(nn.Module):
    """[N, 3, size, size] → [N, S, dim]: class token and patches, without CLIP's last LayerNorm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        try:
            from transformers.models.idefics.configuration_idefics import IdeficsVisionConfig
            from transformers.models.idefics.vision import IdeficsVisionTransformer
        except ImportError as error:
            raise ImportError("IDEFICS needs transformers: flamingo-server[clip]") from error
        theirs = IdeficsVisionConfig(embed_dim=config.dim, **vit_sizes(config))
        self.model = IdeficsVisionTransformer(theirs)
        # Computed, so in no file: they must be real even where the weights are still to come.
        ids = torch.arange(config.num_tokens, device="cpu").unsqueeze(0)
        self.model.embeddings.register_buffer("position_ids", ids, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixels).last_hidden_state
        return tokens
