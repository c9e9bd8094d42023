"""A bound for processes that work on what strangers sent. It imports as little as they should."""

from __future__ import annotations

import sys


def limit_memory(more_bytes: int) -> None:
    """This process may take so much beside what it maps already, which differs with the machine's
    cores; where the system keeps no count, anything."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + more_bytes
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
