"""Sizes of the engine, fixed at start."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TooLarge


@dataclass(frozen=True)
class EngineLimits:
    """`max_length` bounds prompt and answer together, in tokens."""

    num_rows: int = 32
    max_length: int = 1024
    num_media_slots: int = 256
    max_step_tokens: int = 2048
    max_queued: int = 128
    latents_bytes: int = 256 * 2**20

    def check(self, prompt_tokens: int, max_tokens: int, n: int, num_media: int) -> None:
        """Raises TooLarge for a request that could never run, and so would wait for ever."""
        for actual, limit, what in (
            (prompt_tokens + max_tokens, self.max_length, "tokens of prompt and answer"),
            (n, self.num_rows, "sequences"),
            (num_media, self.num_media_slots, "pictures"),
        ):
            if actual > limit:
                raise TooLarge(f"the request needs {actual:,} {what}; the limit is {limit:,}")
