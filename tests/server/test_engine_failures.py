"""The engine when things go wrong: only those concerned notice, and nothing leaks."""

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from fakes import Answer, FakeRunner, ask, drive, make_engine, step
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.scheduler import Plan
from flamingo_server.errors import DeadlineExceeded, Draining, EngineFailure, QueueFull, TooLarge


def test_cancel_frees_everything_within_a_step_and_nothing_follows() -> None:
    engine = make_engine()
    answer = ask(engine, "long" * 9, "x", n=4)
    step(engine, times=3)
    answer.handle.cancel()
    answer.handle.cancel()
    num_events = len(answer.events)
    step(engine)
    assert len(answer.events) == num_events
    assert engine.num_requests == 0 and not engine.scheduler.running
    engine.check_integrity()


def test_cancel_reaches_a_request_that_waits() -> None:
    engine = make_engine(max_running=1)
    first, second = ask(engine, "first"), ask(engine, "second")
    step(engine)
    second.handle.cancel()
    drive(engine)
    assert second.events == [] and first.text() == "tsrif"


def test_a_cancelled_request_leaves_its_neighbours_alone() -> None:
    engine = make_engine()
    gone, stays = ask(engine, "gone", "x"), ask(engine, "stays", "x")
    step(engine, times=2)
    gone.handle.cancel()
    drive(engine)
    assert stays.text() == "syats"


def test_a_deadline_before_the_first_token_is_an_error() -> None:
    engine = make_engine(max_running=1)
    running = ask(engine, "running")
    late = ask(engine, "late", deadline=time.monotonic() - 1)
    drive(engine)
    assert isinstance(late.events[-1], DeadlineExceeded) and len(late.events) == 1
    assert running.reasons == ["stop"]


def test_a_deadline_after_the_first_token_keeps_what_there_is() -> None:
    engine = make_engine()
    answer = ask(engine, "abcdef", n=2, deadline=time.monotonic() + 60)
    step(engine, times=2)
    for request in engine.scheduler.running:
        request.deadline = time.monotonic() - 1
    drive(engine)
    assert answer.reasons == ["timeout"] * 2 and answer.text() == answer.text(1) == "fe"
    assert answer.names[-1] == "Ended"


def test_a_full_queue_refuses_and_recovers() -> None:
    engine = make_engine(max_queued=2)
    ask(engine, "a"), ask(engine, "b")
    with pytest.raises(QueueFull), engine.place():
        pass
    drive(engine)
    with engine.place():
        ask(engine, "d")
    drive(engine)


def test_a_place_counts_while_its_pictures_are_decoded() -> None:
    engine = make_engine(max_queued=1)
    with engine.place(), pytest.raises(QueueFull), engine.place():
        pass
    with engine.place():
        pass


@pytest.mark.parametrize(
    "rules", [{"n": 3}, {"max_tokens": 255}, {"digests": ("x", "y", "z")}], ids=str
)
def test_what_could_never_run_is_refused_at_once(rules: dict[str, Any]) -> None:
    engine = make_engine(max_running=2, num_media_slots=2)
    with pytest.raises(TooLarge):
        ask(engine, "ab", *rules.pop("digests", ()), **rules)
    assert engine.num_requests == 0


def test_logits_that_are_not_finite_end_their_own_request_only() -> None:
    engine = make_engine(FakeRunner(not_finite="poison"))
    bad, good = ask(engine, "poison", "x", n=2), ask(engine, "good", "x")
    drive(engine)
    assert isinstance(bad.events[-1], EngineFailure) and good.text() == "doog"


def test_a_picture_that_cannot_be_encoded_ends_its_own_requests_only() -> None:
    engine = make_engine(FakeRunner(bad_media="bad"))
    bad, both, good = ask(engine, "a", "bad"), ask(engine, "b", "x", "bad"), ask(engine, "ok", "x")
    drive(engine)
    assert isinstance(bad.events[-1], EngineFailure) and isinstance(both.events[-1], EngineFailure)
    assert good.text() == "ko"


def fails_at(number: int) -> Callable[[Plan], None]:
    """Only the step of that number, counted from 1, raises."""
    steps = count(1)

    def before_step(plan: Plan) -> None:
        if next(steps) == number:
            raise RuntimeError("out of memory")

    return before_step


def test_a_step_that_fails_ends_its_requests_and_not_the_engine() -> None:
    runner = FakeRunner(before_step=fails_at(2))
    engine = make_engine(runner, max_running=2)
    answers = [ask(engine, "one", "x"), ask(engine, "two"), ask(engine, "waits")]
    drive(engine)
    assert [isinstance(a.events[-1], EngineFailure) for a in answers] == [True, True, False]
    assert answers[2].text() == "stiaw"


def test_an_error_tells_the_client_nothing_of_the_inside() -> None:
    def leak(plan: Plan) -> None:
        raise RuntimeError("secret path")

    engine = make_engine(FakeRunner(before_step=leak))
    answer = ask(engine, "a")
    drive(engine)
    assert "secret" not in str(answer.events[-1])


# ---- on its own thread


def started(engine: Engine) -> Engine:
    engine.start()
    return engine


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.002)


SLOW = FakeRunner(before_step=lambda plan: time.sleep(0.005))


def test_drain_lets_running_requests_end_and_refuses_new_ones() -> None:
    engine = started(make_engine(SLOW, max_running=1))
    answers = [ask(engine, "one"), ask(engine, "two")]
    draining = threading.Thread(target=engine.drain, args=(5,))
    draining.start()
    wait_for(lambda: engine.is_draining)
    with pytest.raises(Draining):
        ask(engine, "three")
    draining.join()
    assert [a.reasons for a in answers] == [["stop"], ["stop"]] and not engine.is_alive


def test_a_drain_that_takes_too_long_tells_those_who_wait() -> None:
    engine = started(make_engine(SLOW, max_running=1))
    answers = [ask(engine, "long" * 40, max_tokens=90), ask(engine, "waits")]
    engine.drain(0.02)
    assert all(isinstance(a.events[-1], Draining) for a in answers) and not engine.is_alive


def test_nobody_waits_for_an_engine_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    engine = make_engine()
    monkeypatch.setattr(engine, "expire", lambda: 1 / 0)
    answer = ask(started(engine), "a")
    engine.thread.join(5)
    assert isinstance(answer.events[-1], Draining)
    with pytest.raises(Draining):
        ask(engine, "b")


def test_requests_from_many_threads_are_all_answered() -> None:
    engine, answers = started(make_engine(max_queued=200)), list[tuple[str, Answer]]()

    def submit(name: int) -> None:
        for i in range(8):
            text = f"{name} and {i}"
            answers.append((text, ask(engine, text, str(i))))
            if i == 3:
                answers.pop(-1)[1].handle.cancel()

    threads = [threading.Thread(target=submit, args=(name,)) for name in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    wait_for(lambda: engine.num_requests == 0)
    engine.drain(1)
    assert len(answers) == 56 and all(a.text() == text[::-1] for text, a in answers)
    engine.check_integrity()
