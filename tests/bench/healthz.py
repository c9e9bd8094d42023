"""`python healthz.py HOST:PORT SECONDS`: how long `/healthz` takes, in a process of its own so that
the clients that load the server do not slow the clock. Prints the seconds of every answer."""

from __future__ import annotations

import json
import sys
import time
from http.client import HTTPConnection

PAUSE_S = 0.005


def main(address: str, seconds: float) -> None:
    connection, taken = HTTPConnection(address, timeout=30), []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        taken.append(time.perf_counter() - started)
        time.sleep(PAUSE_S)
    print(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
