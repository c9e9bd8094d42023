"""Decides whether, and after how long, a failed request is sent again. Sleeps nowhere."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from flamingo_client.errors import FlamingoError

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `max_retries` attempts after the first. Raises ValueError if that is negative."""

    max_retries: int
    uniform: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be 0 or more, not {self.max_retries}")

    def pause(self, num_failed: int, error: FlamingoError) -> float | None:
        """Seconds to wait after `num_failed` attempts, the last with `error`; None to give up."""
        if num_failed > self.max_retries or not error.is_retryable:
            return None
        if error.retry_after is not None:
            return min(error.retry_after, MAX_RETRY_AFTER_S)
        # Full jitter: clients that failed together must not come back together.
        return self.uniform(0.0, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (num_failed - 1)))
