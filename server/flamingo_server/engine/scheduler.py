"""Who runs in the next step. Pure Python: it knows counts, not tensors.

Every running sequence decodes one token a step; waiting requests join, highest priority first,
while there are rows, media slots and token budget for their prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .request import Request, Sequence


class MediaPins(Protocol):
    """What the scheduler asks of the media cache."""

    def can_pin(self, request: Request) -> bool: ...
    def pin(self, request: Request) -> None: ...
    def unpin(self, request: Request) -> None: ...


@dataclass
class Plan:
    """One step: `prefills` are requests whose prompt runs now, `decodes` sequences that go on."""

    prefills: list[Request] = field(default_factory=list)
    decodes: list[Sequence] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prefills or self.decodes)

    def requests(self) -> list[Request]:
        return [*self.prefills, *dict.fromkeys(s.request for s in self.decodes)]


class Scheduler:
    """Owns the waiting and running requests and the cache rows."""

    def __init__(self, num_rows: int, max_step_tokens: int, media: MediaPins) -> None:
        self.num_rows, self.max_step_tokens, self.media = num_rows, max_step_tokens, media
        self.free_rows = list(range(num_rows - 1, -1, -1))
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Behind all of its priority (larger goes first)."""
        at = sum(other.priority >= request.priority for other in self.waiting)
        self.waiting.insert(at, request)

    def schedule(self) -> Plan:
        plan = Plan(decodes=[s for r in self.running for s in r.sequences if not s.is_finished])
        budget = self.max_step_tokens - len(plan.decodes)
        while self.waiting and self.can_admit(self.waiting[0], budget, alone=not plan.prefills):
            request = self.waiting.pop(0)
            budget -= len(request.prompt.token_ids)
            self.admit(request)
            plan.prefills.append(request)
        return plan

    def can_admit(self, request: Request, budget: int, alone: bool) -> bool:
        """A prompt over the budget still runs, as the only prompt of its step."""
        fits = len(request.prompt.token_ids) <= budget or alone
        has_rows = len(request.sequences) <= len(self.free_rows)
        return fits and has_rows and self.media.can_pin(request)

    def admit(self, request: Request) -> None:
        self.media.pin(request)
        for sequence in request.sequences:
            sequence.row = self.free_rows.pop()
        self.running.append(request)

    def free_row(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self.free_rows.append(sequence.row)
            sequence.row = -1

    def remove(self, request: Request) -> None:
        """Gives back all that the request holds, wherever it stands."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running.remove(request)
            self.media.unpin(request)
        for sequence in request.sequences:
            self.free_row(sequence)

    def holds(self, request: Request) -> bool:
        return request in self.running or request in self.waiting

    def requests(self) -> Iterator[Request]:
        yield from (*self.running, *self.waiting)

    def check_integrity(self) -> None:
        """Every row is either free or held by exactly one live sequence."""
        held = [s.row for r in self.running for s in r.sequences if s.row >= 0]
        assert sorted([*held, *self.free_rows]) == list(range(self.num_rows)), "rows leaked"
