"""Token ids → pieces of text that are safe to send: whole characters, nothing a stop string takes
back. It knows a `decode` function and nothing of the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"  # what a byte-level tokenizer decodes half a character to
LOOKBACK = 6  # tokens of context that decide how the next one is spelt


class Detokenizer:
    """`push` each token, then `finish`; what they return joins to the whole text."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.decode = decode
        self.stop = [s for s in stop if s]
        self.token_ids: list[int] = []
        self.num_read = 0  # tokens whose text is in `pending` or already out
        self.bounds = deque([0])  # numbers of tokens that end with a whole character
        self.pending = ""
        self.has_stopped = False

    def push(self, token_id: int) -> str:
        """The text that is now certain, possibly none."""
        self.token_ids.append(token_id)
        self.pending += self.fresh_text(final=False)
        return self.release(final=False)

    def finish(self) -> str:
        """Everything still held back, cut at a stop string."""
        self.pending += self.fresh_text(final=True)
        return self.release(final=True)

    def whole(self, token_ids: list[int]) -> str:
        """The text of these alone; nothing is remembered."""
        return self.decode(token_ids)

    def preview(self, token_ids: list[int]) -> str:
        """What a whole answer of these tokens would read, cut at a stop string."""
        text = self.whole(token_ids)
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        return text[: min(found)] if found else text

    def fresh_text(self, final: bool) -> str:
        """Text of the unread tokens, or nothing while it ends inside a character."""
        start = self.window()
        before = self.decode(self.token_ids[start : self.num_read])
        now = self.decode(self.token_ids[start:])
        if now.endswith(INCOMPLETE) and not final:
            return ""
        self.num_read = len(self.token_ids)
        self.bounds.append(self.num_read)
        return now[len(before) :]

    def window(self) -> int:
        """Where the tokens begin that are decoded again: some before the unread ones, and never
        inside a character, of which every token might be one byte.
        """
        while len(self.bounds) > 1 and self.bounds[1] <= self.num_read - LOOKBACK:
            self.bounds.popleft()
        return self.bounds[0]

    def release(self, final: bool) -> str:
        if self.has_stopped:
            return ""
        found = [at for s in self.stop if (at := self.pending.find(s)) >= 0]
        if found:
            self.has_stopped = True
            return self.pending[: min(found)]
        keep = 0 if final else self.possible_stop()
        safe, self.pending = (
            self.pending[: len(self.pending) - keep],
            self.pending[len(self.pending) - keep :],
        )
        return safe

    def possible_stop(self) -> int:
        """Length of the longest tail of `pending` that could still become a stop string."""
        longest = max((len(s) for s in self.stop), default=1) - 1
        for size in range(min(longest, len(self.pending)), 0, -1):
            tail = self.pending[-size:]
            if any(s.startswith(tail) for s in self.stop):
                return size
        return 0
