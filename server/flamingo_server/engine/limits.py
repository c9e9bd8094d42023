"""Sizes of the engine, fixed at start."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TooLarge
from .request import Sampling


@dataclass(frozen=True)
class EngineLimits:
    """`max_length` bounds prompt and answer together, in tokens; `max_work` the tokens that all
    choices or beams of a request may generate together.
    """

    max_running: int = 32
    max_length: int = 1024
    block_size: int = 16
    num_blocks: int = 2048
    num_media_slots: int = 256
    max_step_tokens: int = 2048
    max_queued: int = 128
    max_work: int = 65_536
    latents_bytes: int = 256 * 2**20
    media_at_once: int = 4  # pictures encoded in a step while others decode
    trie_at_once: int = 256  # candidate tokens in a step
    is_deterministic: bool = False

    def check(self, prompt_tokens: int, num_media: int, sampling: Sampling) -> None:
        """Raises TooLarge for a request that could never run, and so would wait for ever."""
        width, new = sampling.width, sampling.max_tokens
        blocks = self.blocks_for(prompt_tokens) + width * (self.blocks_for(new) + 2)
        self.check_sizes(prompt_tokens + new, width, num_media, blocks)
        if width * new > self.max_work:
            raise TooLarge(
                f"{width} sequences of {new:,} tokens are {width * new:,} tokens to generate; the "
                f"limit is {self.max_work:,}: lower max_tokens, n or num_beams",
                param="max_tokens",
                code="too_much_work",
            )

    def check_scores(self, prompt_tokens: int, num_media: int, longest: int) -> None:
        """The same for candidates, the longest of so many tokens."""
        blocks = self.blocks_for(prompt_tokens + max(self.trie_at_once, 2 * longest)) + 2
        self.check_sizes(prompt_tokens + longest, 1, num_media, blocks)

    def check_sizes(self, tokens: int, width: int, num_media: int, blocks: int) -> None:
        for actual, limit, what in (
            (tokens, self.max_length, "tokens of prompt and answer"),
            (width, self.max_running, "sequences"),
            (num_media, self.num_media_slots, "pictures"),
            (blocks, self.num_blocks, "cache blocks"),
        ):
            if actual > limit:
                raise TooLarge(f"the request needs {actual:,} {what}; the limit is {limit:,}")

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
