"""The scheduler: who may run, what of it, and that everything comes back."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from fakes import make_request
from flamingo_server.engine.blocks import BlockPool, OutOfBlocks
from flamingo_server.engine.request import Request, Sequence
from flamingo_server.engine.scheduler import Plan, Scheduler


@dataclass
class FakePins:
    """Room for `slots` pictures, shared by nobody."""

    slots: int = 100
    held: dict[Request, set[int]] = field(default_factory=dict)

    def can_pin(self, request: Request, wanted: set[int]) -> bool:
        return sum(map(len, self.held.values())) + len(wanted) <= self.slots

    def pin(self, request: Request, wanted: set[int]) -> None:
        self.held[request] = wanted

    def unpin(self, request: Request) -> None:
        del self.held[request]


def scheduler(
    max_running: int = 8,
    max_step_tokens: int = 100,
    num_blocks: int = 100,
    block_size: int = 4,
    slots: int = 100,
    **rest: Any,
) -> Scheduler:
    pool = BlockPool(num_blocks, block_size)
    return Scheduler(max_running, max_step_tokens, pool, FakePins(slots), **rest)


def step(scheduler: Scheduler) -> Plan:
    """As if a model had run: everyone's pictures are there at once."""
    for request in scheduler.admit():
        request.has_media = True
    plan = scheduler.schedule()
    scheduler.commit(plan)
    scheduler.check_integrity()
    return plan


def names(plan: Plan) -> list[str]:
    return [chunk.sequence.request.id for chunk in plan.chunks]


def fill(scheduler: Scheduler, *requests: Request) -> list[str]:
    for request in requests:
        scheduler.add(request)
    return names(step(scheduler))


def go_on(*requests: Request) -> None:
    """One more token for all of their sequences."""
    for sequence in (s for request in requests for s in request.sequences):
        sequence.tokens.append(77)


def test_requests_run_in_the_order_they_came() -> None:
    assert fill(scheduler(), make_request("a"), make_request("b")) == ["a", "b"]


def test_a_higher_priority_goes_first_and_an_equal_one_waits_its_turn() -> None:
    low, high, also_low = make_request("l"), make_request("h", priority=5), make_request("m")
    assert fill(scheduler(max_running=2), low, also_low, high) == ["h", "l"]


def test_a_running_sequence_decodes_in_the_next_step() -> None:
    s, request = scheduler(), make_request("abc")
    fill(s, request)
    go_on(request)
    [chunk] = step(s).decodes
    assert (chunk.begin, chunk.end) == (3, 4) and chunk.wanted == range(3, 4)


def test_who_has_no_token_to_compute_is_not_in_the_plan() -> None:
    s = scheduler()
    fill(s, make_request("abc"))
    assert not step(s)


def test_a_request_waits_until_there_is_room_for_its_whole_width() -> None:
    s, first, second = scheduler(3), make_request("a", width=2), make_request("b", width=2)
    assert fill(s, first, second) == ["a"]
    s.remove(first)
    assert names(step(s)) == ["b"]


def test_prompts_over_the_token_budget_go_on_in_the_next_step() -> None:
    s = scheduler(max_step_tokens=10)
    assert fill(s, make_request("aaaaaa"), make_request("bbbbbb")) == ["aaaaaa", "bbbbbb"]
    [rest] = step(s).chunks
    assert (rest.begin, rest.end) == (4, 6)


def test_a_long_prompt_never_keeps_others_from_decoding() -> None:
    s, short = scheduler(max_step_tokens=5), make_request("ab")
    fill(s, short)
    fill(s, make_request("long" * 5))
    go_on(short)
    plan = step(s)
    assert names(plan) == ["ab", "long" * 5] and plan.num_tokens == 5


def test_logits_are_wanted_of_the_last_token_only() -> None:
    s = scheduler(max_step_tokens=3)
    s.add(make_request("abcd"))
    assert [list(chunk.wanted) for _ in range(2) for chunk in step(s).chunks] == [[], [3]]


def test_a_request_waits_until_its_pictures_have_slots() -> None:
    s, first, second = scheduler(slots=2), make_request("a", "x", "y"), make_request("b", "z")
    assert fill(s, first, second) == ["a"]
    s.remove(first)
    assert names(step(s)) == ["b"]


def test_a_request_whose_pictures_are_not_encoded_does_not_run() -> None:
    s = scheduler()
    s.add(make_request("a", "x"))
    [request] = s.admit()
    assert not s.schedule()
    request.has_media = True
    assert names(s.schedule()) == ["a"]


def test_nobody_overtakes_the_first_in_line() -> None:
    s = scheduler(max_running=2)
    fill(s, make_request("running"))
    assert fill(s, make_request("wide", width=2), make_request("narrow")) == []


# ---- prefixes


def test_a_prefix_computed_before_is_not_computed_again() -> None:
    s, first, second = scheduler(), make_request("abcdefgh.1"), make_request("abcdefgh.2")
    fill(s, first)
    s.add(second)
    [chunk] = step(s).chunks
    assert (chunk.begin, chunk.end, second.cached_tokens) == (8, 10, 8)
    assert first.sequences[0].blocks[:2] == second.sequences[0].blocks[:2]


def test_a_prompt_seen_before_still_computes_its_last_token() -> None:
    s, again = scheduler(), make_request("abcdefgh")
    fill(s, make_request("abcdefgh"))
    s.add(again)
    [chunk] = step(s).chunks
    assert (chunk.begin, chunk.end, again.cached_tokens) == (7, 8, 7)


def test_prompts_of_one_step_share_what_the_first_of_them_computes() -> None:
    s = scheduler()
    for text in ("abcdefgh.1", "abcdefgh.2"):
        s.add(make_request(text))
    first, second = step(s).chunks
    assert (first.begin, second.begin) == (0, 8)


def test_a_block_that_ends_otherwise_is_copied_as_far_as_it_is_the_same() -> None:
    s, first, second = scheduler(), make_request("abcdef"), make_request("abcx")
    fill(s, first)
    s.add(second)
    [chunk] = step(s).chunks
    assert chunk.begin == 3
    assert chunk.copies == [(first.sequences[0].blocks[0], second.sequences[0].blocks[0])]


def test_a_prompt_whose_logits_are_wanted_shares_nothing_yet() -> None:
    s, whole = scheduler(), make_request("abcdefgh")
    whole.reuses_prefix, whole.sequences[0].logits_from = False, 0
    fill(s, make_request("abcdefgh"))
    s.add(whole)
    [chunk] = step(s).chunks
    assert chunk.wanted == range(0, 8)


def test_an_answer_that_ended_is_a_prefix_too() -> None:
    s, request = scheduler(), make_request("abc")
    fill(s, request)
    go_on(request)
    step(s)
    s.tables.finish(request.sequences[0])
    s.remove(request)
    again = make_request("abc")
    again.sequences[0].tokens += [77, 78]
    s.add(again)
    [chunk] = step(s).chunks
    assert chunk.begin == 4


def test_pictures_that_only_cached_tokens_look_at_are_not_pinned() -> None:
    s = scheduler(block_size=1)
    fill(s, make_request("", "x", "y"))
    again = make_request("a", "x", "y")
    s.add(again)
    step(s)
    assert s.media.held[again] == {1}  # type: ignore[attr-defined]


def test_a_failed_request_leaves_no_prefix() -> None:
    s, first, second = scheduler(), make_request("abcdefgh.1"), make_request("abcdefgh.2")
    fill(s, first)
    s.tables.forget(first)
    s.remove(first)
    s.add(second)
    [chunk] = step(s).chunks
    assert chunk.begin == 0


def test_a_failed_request_takes_nothing_that_others_had_computed() -> None:
    s, first, second = scheduler(), make_request("abcdefgh.1"), make_request("abcdefghXXXX.2")
    third = make_request("abcdefgh.3")
    fill(s, first)
    fill(s, second)
    s.tables.forget(second)
    s.remove(second)
    [chunk] = [c for c in (s.add(third), step(s))[1].chunks if c.sequence.request is third]
    assert chunk.begin == 8


def test_what_a_withdrawn_chunk_would_have_filled_is_not_found() -> None:
    """Two sequences that come back together: there is room for the first's prompt alone."""
    s, wide = scheduler(num_blocks=8), make_request("abcdefghijkl", width=2)
    wide.sequences.append(Sequence(wide, [*wide.sequences[0].tokens[:-1], 5, 6, 7, 8, 9]))
    wide.has_media = True
    s.running.append(wide)
    s.media.pin(wide, set())
    others = s.blocks.allocate(5)
    assert not s.schedule() and s.waiting == [wide]
    s.blocks.release(others)
    again = make_request("abcdefghijkl")
    s.remove(wide)
    assert fill(s, again) == ["abcdefghijkl"] and again.cached_tokens == 0


# ---- too little room


def test_the_last_in_rank_is_displaced_and_comes_back() -> None:
    s = scheduler(num_blocks=5)
    first, last = make_request("aaaaaaa"), make_request("bbbbbbb")
    fill(s, first, last)
    for _ in range(6):
        go_on(first)
        step(s)
    assert s.waiting == [last] and s.num_preemptions == 1 and not last.sequences[0].blocks
    s.remove(first)
    assert names(step(s)) == ["bbbbbbb"]


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    s, low, high = scheduler(max_running=1), make_request("low"), make_request("high", priority=1)
    fill(s, low)
    assert fill(s, high) == ["high"] and s.waiting == [low]


def test_an_equal_priority_waits() -> None:
    s = scheduler(max_running=1)
    fill(s, make_request("first"))
    assert fill(s, make_request("second")) == []


def test_what_is_displaced_is_not_in_the_plan() -> None:
    s = scheduler(num_blocks=4)
    first, last = make_request("aaaa"), make_request("bbbb")
    fill(s, first, last)
    go_on(first, last)
    step(s)
    for _ in range(3):
        go_on(first, last)
        step(s)
    go_on(first, last)
    assert names(step(s)) == ["aaaa"] and s.waiting == [last]


def test_a_displaced_request_of_many_sequences_counts_its_prompt_once() -> None:
    s, request = scheduler(num_blocks=20), make_request("p" * 48, width=3)
    fill(s, request)
    for _ in range(2):
        s.tables.fork(request.sequences[0])
    s.preempt(request)
    while s.blocks.idle:
        s.blocks.evict()
    go_on(request)
    assert names(step(s)) == ["p" * 48] * 3


def test_a_displaced_request_with_prompt_logprobs_shares_its_prompt_then() -> None:
    s, request = scheduler(num_blocks=20), make_request("p" * 48, width=3)
    request.reuses_prefix, request.sequences[0].logits_from = False, 0
    fill(s, request)
    request.first_token, request.sequences[0].logits_from = 1.0, None
    for _ in range(2):
        s.tables.fork(request.sequences[0])
    s.preempt(request)
    go_on(request)
    assert names(step(s)) == ["p" * 48] * 3 and s.num_preemptions == 1


def test_a_copy_is_made_though_there_was_no_room_at_first() -> None:
    s, request = scheduler(num_blocks=4), make_request("abcdef")
    fill(s, request)
    sequence = request.sequences[0]
    other = s.tables.fork(sequence)
    other.tokens += [77] * 8
    held = s.blocks.allocate(1)
    with pytest.raises(OutOfBlocks):
        s.tables.take_blocks(other, 14)
    s.blocks.release(held)
    old = sequence.blocks[1]
    assert s.tables.take_blocks(other, 10) == [(old, other.blocks[1])]


# ---- deterministic


def test_chunks_end_where_blocks_and_prompts_end_when_deterministic() -> None:
    s, request = scheduler(is_deterministic=True), make_request("abcdef")
    request.sequences[0].tokens += [77, 78]  # it was displaced
    s.add(request)
    ends = [chunk.end for _ in range(4) for chunk in step(s).chunks]
    assert ends == [4, 6, 7, 8]


def test_no_chunk_is_cut_short_by_company_when_deterministic() -> None:
    s = scheduler(max_step_tokens=6, is_deterministic=True)
    assert fill(s, make_request("aaaa"), make_request("bbbb")) == ["aaaa"]
    assert [(c.begin, c.end) for c in step(s).chunks] == [(0, 4)]


# ---- the end


@pytest.mark.parametrize("is_running", [True, False])
def test_remove_frees_everything_wherever_the_request_stands(is_running: bool) -> None:
    s, request = scheduler(), make_request("a", "x", width=3)
    s.add(request)
    if is_running:
        step(s)
    s.remove(request)
    s.remove(request)  # once more does no harm
    assert not s.blocks.references and not s.media.held  # type: ignore[attr-defined]
    assert not s.holds(request)


def test_equal_requests_are_not_taken_for_each_other() -> None:
    s, twins = scheduler(), [make_request("a", "x"), make_request("a", "x")]
    fill(s, *twins)
    s.remove(twins[1])
    assert s.holds(twins[0]) and not s.holds(twins[1])
    go_on(twins[0])
    assert step(s).requests() == [twins[0]]


def test_integrity_sees_a_block_that_nobody_names() -> None:
    s = scheduler()
    fill(s, make_request("abc"))
    s.running[0].sequences[0].blocks.pop()
    with pytest.raises(AssertionError, match="held by nobody"):
        s.check_integrity()
