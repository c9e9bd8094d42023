"""Bad records: counted, named in the log, and too many of them the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .document import BadRecord

MAX_BAD_SHARE = 0.01
_ENOUGH = 100  # records, before a share of bad ones means anything to a run that has just begun
_log = logging.getLogger("flamingo_model.training")


class TooManyBad(ValueError):
    """More of a source is bad than was allowed."""


class Skipper:
    """How many records were met (`seen`), and how many of them were bad.

    Those two numbers are all its state: a resumed run begins with what was saved of them.

    Raises:
        ValueError: a share below 0 or above 1.
    """

    def __init__(
        self,
        max_bad_share: float = MAX_BAD_SHARE,
        *,
        seen: int = 0,
        bad: int = 0,
        num_named: int = 20,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {max_bad_share}, and must be from 0 to 1")
        self.max_bad_share, self.seen, self.bad = max_bad_share, seen, bad
        self._left_to_name, self._warn = num_named, warn

    def count(self, good: int, bad: int = 0) -> None:
        self.seen += good + bad
        self.bad += bad

    def skip(self, error: BadRecord) -> None:
        """Counts a bad record and logs its place and reason, or that it logs no more."""
        self.count(0, 1)
        if self._left_to_name > 0:
            self._warn(f"skipped {error}")
        elif self._left_to_name == 0:
            self._warn("further bad records are counted, not named")
        self._left_to_name -= 1

    def check(self, enough: int = _ENOUGH) -> None:
        """Raises TooManyBad; of fewer than `enough` records, each counts as one of so many."""
        if self.bad > self.max_bad_share * max(self.seen, enough):
            raise TooManyBad(f"{self.summary()}; at most {self.max_bad_share:.3%} may be")

    def summary(self) -> str:
        share = f" ({self.bad / self.seen:.3%})" if self.bad else ""
        return f"{self.bad:,} of {self.seen:,} records are bad{share}"
