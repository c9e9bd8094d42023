"""Who goes first where an engine works on every core."""

import os
import sys
import threading

import pytest

from flamingo_server.threads import NICENESS, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_thread_that_gives_way_does_so_with_those_it_starts_and_no_others() -> None:
    found, may_go = list[int](), threading.Event()

    def work() -> None:
        may_go.wait()
        found.append(niceness())
        worker = threading.Thread(target=lambda: found.append(niceness()))
        worker.start()
        worker.join()

    before, thread = niceness(), threading.Thread(target=work)
    thread.start()
    give_way(thread)
    may_go.set()
    thread.join()
    assert found == [min(19, before + NICENESS)] * 2
    assert niceness() == before


def test_a_thread_that_has_not_started_or_has_ended_is_left_alone() -> None:
    thread = threading.Thread(target=int)
    give_way(thread)
    thread.start()
    thread.join()
    give_way(thread)
