"""Sizes of the engine, fixed at start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """`max_length` bounds prompt and answer together, in tokens."""

    num_rows: int = 32
    max_length: int = 1024
    num_media_slots: int = 256
    max_step_tokens: int = 2048
    max_queued: int = 128
    latents_bytes: int = 256 * 2**20
