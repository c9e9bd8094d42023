"""Examiners that some documents hang, crash or exhaust: what runs in a check's processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from flamingo_model.training.data.document import Document, TextPart
from flamingo_model.training.data.examine import Finding, examine


def fragile(documents: Sequence[Document], tokenizer: str | None) -> list[Finding]:
    for document in documents:
        for part in document.parts:
            if isinstance(part, TextPart):
                suffer(part.text)
    return examine(documents, tokenizer)


def suffer(text: str) -> None:
    match text:
        case "hang":
            time.sleep(600)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exhaust":
            raise MemoryError
        case "surprise":
            raise RuntimeError("nobody thought of this")
