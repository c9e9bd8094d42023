"""What `check` does with a document in a process of its own: decode everything, count, measure."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tokenizers import Tokenizer

from ...film import FilmOptions
from ...media import Transform, to_pixels, upright_size
from .document import Document, MediaPart
from .media import decoding, open_picture, read_film
from .problems import Problem, SourceError

_SMALL = Transform("squash", 32, (0, 0, 0), (1, 1, 1))
_FRAMES = FilmOptions(max_frames=8)


@dataclass(frozen=True)
class Medium:
    """A picture or film: pixels of its sides, seconds, and the digest of its file."""

    kind: Literal["image", "video"]
    width: int
    height: int
    seconds: float
    digest: bytes


@dataclass(frozen=True)
class Finding:
    """One record. `problem` is why it is bad, or ""; the rest is there where it is not."""

    place: str
    problem: str = ""
    words: int = 0
    tokens: int = 0
    media: tuple[Medium, ...] = ()
    digest: bytes = b""


def prepare(limit_memory: Callable[[], None] | None) -> None:
    """Begins a process: loads the decoders, and then bounds the memory they may take."""
    warnings.simplefilter("ignore")  # odd metadata is no news
    with suppress(ImportError):
        import av

        assert av
    if limit_memory:
        limit_memory()


def examine(documents: Sequence[Document], tokenizer: str | None) -> list[Finding]:
    return [_examine(document, tokenizer) for document in documents]


def _examine(document: Document, tokenizer: str | None) -> Finding:
    media, texts, digest = list[Medium](), list[str](), hashlib.sha256()
    for part in document.parts:
        if isinstance(part, MediaPart):
            try:
                media.append(_medium(part))
            except Problem as problem:
                noun = "film" if part.kind == "video" else "picture"
                return Finding(document.place, f"{noun} {len(media) + 1}: {problem}")
            digest.update(media[-1].digest)
        else:
            texts.append(part.text)
            digest.update(f"\0{part.learned}\0{part.text}\0".encode())
    return Finding(
        document.place,
        words=sum(len(text.split()) for text in texts),
        tokens=_count_tokens(texts, tokenizer) if tokenizer else 0,
        media=tuple(media),
        digest=digest.digest(),
    )


def _medium(part: MediaPart) -> Medium:
    digest = hashlib.sha256(part.data).digest()
    with decoding():
        if part.kind == "video":
            film = read_film(part.data, _SMALL, _FRAMES)
            return Medium("video", film.width, film.height, film.duration, digest)
        with open_picture(part.data) as picture:
            to_pixels(picture, _SMALL)
            return Medium("image", *upright_size(picture), 0.0, digest)


def _count_tokens(texts: Sequence[str], tokenizer: str) -> int:
    found = open_tokenizer(tokenizer).encode_batch(list(texts), add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in found)


@lru_cache(maxsize=1)
def open_tokenizer(path: str) -> Tokenizer:
    """Raises SourceError."""
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises no narrower one
        raise SourceError(f"{path} is no tokenizer.json: {error}") from None
