"""The scheduler: who may run, and that everything comes back."""

import random
from dataclasses import dataclass, field

import pytest

from fakes import make_request
from flamingo_server.engine.request import Request
from flamingo_server.engine.scheduler import Scheduler


@dataclass
class FakePins:
    """Room for `slots` pictures, shared by nobody."""

    slots: int = 100
    held: list[Request] = field(default_factory=list)

    def used(self) -> int:
        return sum(len(request.prompt.media) for request in self.held)

    def can_pin(self, request: Request) -> bool:
        return self.used() + len(request.prompt.media) <= self.slots

    def pin(self, request: Request) -> None:
        self.held.append(request)

    def unpin(self, request: Request) -> None:
        self.held.remove(request)


def scheduler(num_rows: int = 8, max_step_tokens: int = 100, slots: int = 100) -> Scheduler:
    return Scheduler(num_rows, max_step_tokens, FakePins(slots))


def names(requests: list[Request]) -> list[str]:
    return [request.id for request in requests]


def fill(scheduler: Scheduler, *requests: Request) -> list[str]:
    for request in requests:
        scheduler.add(request)
    return names(scheduler.schedule().prefills)


def test_requests_run_in_the_order_they_came() -> None:
    assert fill(scheduler(), make_request("a"), make_request("b")) == ["a", "b"]


def test_a_higher_priority_goes_first_and_an_equal_one_waits_its_turn() -> None:
    low, high, also_low = make_request("l"), make_request("h", priority=5), make_request("m")
    assert fill(scheduler(num_rows=2), low, also_low, high) == ["h", "l"]


def test_a_running_sequence_decodes_in_the_next_step() -> None:
    s = scheduler()
    request = make_request(n=2)
    fill(s, request)
    plan = s.schedule()
    assert plan.decodes == request.sequences and not plan.prefills


def test_a_request_waits_until_all_its_sequences_have_rows() -> None:
    s, first, second = scheduler(num_rows=3), make_request("a", n=2), make_request("b", n=2)
    assert fill(s, first, second) == ["a"]
    s.remove(first)
    assert names(s.schedule().prefills) == ["b"]


def test_a_finished_sequence_gives_its_row_to_the_next_request() -> None:
    s, first, second = scheduler(num_rows=2), make_request("a", n=2), make_request("b")
    fill(s, first, second)
    first.sequences[0].finish_reason = "stop"
    s.free_row(first.sequences[0])
    assert names(s.schedule().prefills) == ["b"]
    s.check_integrity()


def test_prompts_over_the_token_budget_wait_for_the_next_step() -> None:
    s = scheduler(max_step_tokens=10)
    assert fill(s, make_request("aaaaaa"), make_request("bbbbbb")) == ["aaaaaa"]
    assert names(s.schedule().prefills) == ["bbbbbb"]


def test_decodes_count_against_the_budget() -> None:
    s = scheduler(max_step_tokens=5)
    fill(s, make_request("a", n=3))
    assert fill(s, make_request("b"), make_request("cc")) == ["b"]


def test_a_prompt_larger_than_the_budget_runs_alone() -> None:
    s = scheduler(max_step_tokens=4)
    assert fill(s, make_request("longer"), make_request("b")) == ["longer"]


def test_a_request_waits_until_its_pictures_have_slots() -> None:
    s, first, second = scheduler(slots=2), make_request("a", "x", "y"), make_request("b", "z")
    assert fill(s, first, second) == ["a"]
    s.remove(first)
    assert names(s.schedule().prefills) == ["b"]


def test_nobody_overtakes_the_first_in_line() -> None:
    s = scheduler(num_rows=2)
    fill(s, make_request("running"))
    assert fill(s, make_request("wide", n=2), make_request("narrow")) == []


@pytest.mark.parametrize("is_running", [True, False])
def test_remove_frees_everything_wherever_the_request_stands(is_running: bool) -> None:
    s, request = scheduler(), make_request("a", "x", n=3)
    s.add(request)
    if is_running:
        s.schedule()
    s.remove(request)
    s.remove(request)  # once more does no harm
    assert len(s.free_rows) == 8 and not s.media.held  # type: ignore[attr-defined]
    assert not s.holds(request)


def test_equal_requests_are_not_taken_for_each_other() -> None:
    s, twins = scheduler(), [make_request("a", "x"), make_request("a", "x")]
    fill(s, *twins)
    s.remove(twins[1])
    assert s.holds(twins[0]) and not s.holds(twins[1])
    assert s.schedule().requests() == [twins[0]]


def test_integrity_sees_a_lost_row() -> None:
    s = scheduler()
    s.free_rows.pop()
    with pytest.raises(AssertionError, match="rows leaked"):
        s.check_integrity()


@pytest.mark.parametrize("seed", range(20))
def test_no_row_is_lost_or_shared_whatever_comes_and_goes(seed: int) -> None:
    s, dice = scheduler(num_rows=5, max_step_tokens=12, slots=4), random.Random(seed)
    for number in range(60):
        digests = [str(number)] * dice.randint(0, 2)
        s.add(make_request(str(number), *digests, n=dice.randint(1, 3)))
        s.schedule()
        if dice.random() < 0.7:
            s.remove(dice.choice(list(s.requests())))
        s.check_integrity()
