"""Files over HTTP, fetched whole and in several goes if need be."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import IO
from urllib.parse import urlsplit

import httpx

from .problems import Missing, SourceError

_TRIES = 4
_WAIT_S = 1.0  # before the second try; twice as long before each later one
_TIMEOUT = httpx.Timeout(30)
_PASSING = (408, 425, 429)  # statuses below 500 that another try may mend


def fetch(url: str, file: IO[bytes]) -> None:
    """Fills an empty file; a connection that breaks is taken up where it broke.

    Raises:
        Missing: the server says that there is no such file, or not for us.
        SourceError: it cannot be reached. No record is skipped for that: a run that goes on
            without a shard could not be resumed exactly.
    """
    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S * 2 ** (attempt - 1))
        try:
            return _go_on(url, file)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            reason = f"answers {status}"
            if status < 500 and status not in _PASSING:
                raise Missing(f"{host(url)} {reason}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
    raise SourceError(f"{host(url)} was tried {_TRIES} times: {reason}")


def host(url: str) -> str:
    """What may be said of an address: keys are kept in the rest of it."""
    return urlsplit(url).hostname or "the server"


def _go_on(url: str, file: IO[bytes]) -> None:
    at = file.tell()
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={at}-"} if at else {})}
    with _client().stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # all of it was there
            return
        response.raise_for_status()
        if at and not _starts_at(response, at):
            file.seek(0)
            file.truncate()
        for piece in response.iter_bytes():
            file.write(piece)


@cache
def _client() -> httpx.Client:
    """One for all, since loading the certificates takes long; it keeps no connection open."""
    alone = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(limits=alone, timeout=_TIMEOUT, follow_redirects=True)


def _starts_at(response: httpx.Response, at: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status_code == 206 and found is not None and int(found[1]) == at
