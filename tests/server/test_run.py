"""What the server does once all is loaded."""

import gc

from flamingo_server.run import leave_to_live


def test_once_ready_garbage_is_searched_for_again_but_not_in_what_start_up_made() -> None:
    gc.disable()
    try:
        leave_to_live()
        assert gc.isenabled() and gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        gc.enable()
