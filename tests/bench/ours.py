"""Our server as its users meet it: over HTTP, through the Python client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from bench.prompts import Prompt
from flamingo_client import APIError, FlamingoClient, FlamingoError, Token, image, text
from serving import serve


class Ours:
    """One server. Times are seconds from sending a request that is ready to be sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = FlamingoClient(base_url=url, max_retries=0)

    def first_token(self, prompt: Prompt) -> float:
        """Until the first token is in the client's hands."""
        return self.stream(parts(prompt), 1)[0]

    def per_token(self, prompt: Prompt, num_tokens: int) -> float:
        """Between the first token and the last."""
        return self.stream(parts(prompt), num_tokens)[1]

    def stream(self, sent: list[Any], num_tokens: int) -> tuple[float, float]:
        """Until the first token; and from there, per token."""
        started = time.perf_counter()
        with self.client.stream(sent, max_tokens=num_tokens, min_tokens=num_tokens) as events:
            came = [(time.perf_counter(), len(e.token_ids)) for e in events if isinstance(e, Token)]
        return intervals(started, came)

    def whole(self, prompt: Prompt, num_tokens: int, num_beams: int | None = None) -> float:
        """Until the whole answer is there."""
        sent, started = parts(prompt), time.perf_counter()
        self.answer(sent, num_tokens, num_beams)
        return time.perf_counter() - started

    def answer(self, sent: list[Any], num_tokens: int, num_beams: int | None = None) -> list[int]:
        """Token ids of exactly that many tokens."""
        options: dict[str, Any] = {"max_tokens": num_tokens, "min_tokens": num_tokens}
        answer = self.client.generate(sent, num_beams=num_beams, **options)
        return list(answer.choices[0].token_ids)

    def step(self, prompt: Prompt, num_tokens: int, num_beams: int | None = None) -> float:
        """Per token after the first, as OpenFlamingo is timed; no stream, so that beams that
        commit late are not favoured."""
        return steps(lambda num: self.whole(prompt, num, num_beams), num_tokens)

    def classify(self, prompt: Prompt, candidates: list[str]) -> tuple[float, dict[str, Any]]:
        """Seconds and the answer."""
        body = {"prompt": parts(prompt), "candidates": candidates, "normalize": "mean"}
        started = time.perf_counter()
        answer = self.post("/v1/classify", body)
        return time.perf_counter() - started, answer

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        ids: list[int] = self.post("/v1/render", {"prompt": parts(prompt)})["token_ids"]
        return ids

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """For what the client has no method for. Raises APIError."""
        response = httpx.post(self.url + path, json=body, timeout=600, trust_env=False)
        answer: dict[str, Any] = response.json()
        if response.is_error:
            told = answer.get("error", {})
            message = told.get("message", response.text)
            raise APIError(response.status_code, message, code=told.get("code"))
        return answer


class Absent(Ours):
    """A server that did not start: every use of it says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        raise FlamingoError(self.reason)


@contextmanager
def start_ours(model: Any, **settings: object) -> Iterator[Ours]:
    """An Absent one where it does not start."""
    with ExitStack() as stack:
        try:
            ours = Ours(stack.enter_context(serve(model, **settings)))
        except RuntimeError as error:
            ours = Absent(str(error).strip().splitlines()[-1])
        yield ours


def parts(prompt: Prompt) -> list[Any]:
    sent: list[Any] = []
    for shot in prompt.shots:
        sent += [image(shot.picture), text(f"{shot.text}<|endofchunk|>", special_tokens=True)]
    return [*sent, image(prompt.query.picture), text(prompt.query.text)]


def intervals(started: float, came: list[tuple[float, int]]) -> tuple[float, float]:
    """From when tokens came, and how many at once: until the first; and from there, per token."""
    later = sum(num for _, num in came[1:])
    return came[0][0] - started, (came[-1][0] - came[0][0]) / later if later else 0.0


def steps(seconds_of: Any, num_tokens: int) -> float:
    """(t(n) - t(1)) / (n - 1)"""
    return (seconds_of(num_tokens) - seconds_of(1)) / (num_tokens - 1)


def problem_of(error: Exception) -> str:
    """What this version does not serve is no failure."""
    if isinstance(error, APIError) and (
        error.code == "not_supported" or error.status in (404, 405, 501)
    ):
        return "not served"
    return f"failed: {' '.join(str(error).split())[:200]}"
