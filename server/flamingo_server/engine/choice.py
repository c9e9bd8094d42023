"""One answer of a request as the client gets it: tokens in, text that is certain out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .detokenize import Detokenizer
from .request import Finished, FinishReason, Request, Text, TokenLogprob


@dataclass(eq=False)
class Choice:
    """Its tokens, its own random numbers, and how far the client has been told."""

    request: Request
    index: int
    detokenizer: Detokenizer
    random: random.Random
    keeps_logprobs: bool = False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_sent: int = 0  # of `token_ids`, how many an event has carried
    finish_reason: FinishReason | None = None

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def has_stopped(self) -> bool:
        """A stop string has come up."""
        return self.detokenizer.has_stopped

    def add(self, token: int, logprob: TokenLogprob | None, is_end: bool = False) -> None:
        """Sends what is now certain; a token that ends the answer has no text."""
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if not is_end and (text := self.detokenizer.push(token)):
            self.send(text)

    def send(self, text: str) -> None:
        ids = self.token_ids[self.num_sent :]
        logprobs = self.logprobs[self.num_sent :] if self.keeps_logprobs else None
        self.num_sent = len(self.token_ids)
        self.request.deliver(Text(self.index, text, ids, logprobs))

    def finish(self, reason: FinishReason, score: float | None = None) -> None:
        """The last text and the reason."""
        text = self.detokenizer.finish()
        if self.has_stopped and reason == "length":
            reason = "stop"
        if text or self.num_sent < len(self.token_ids):
            self.send(text)
        self.finish_reason = reason
        self.request.deliver(Finished(self.index, reason, score))
