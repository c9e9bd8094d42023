"""Pictures and films seen before, by the SHA-256 of their encoded bytes and what was wanted of a
film. Bounded by bytes of pixels."""

from __future__ import annotations

from collections import OrderedDict

from flamingo_server.media.decode import DecodedMedia


class PictureCache:
    """Least recently used goes first. Not thread-safe: it lives on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._pictures: OrderedDict[bytes, DecodedMedia] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, key: bytes) -> DecodedMedia | None:
        """The picture, which counts as used now."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def put(self, key: bytes, media: DecodedMedia) -> None:
        """Keeps the picture, unless it alone is larger than the cache."""
        if key in self._pictures or media.pixels.nbytes > self.max_bytes:
            return
        self._pictures[key] = media
        self.num_bytes += media.pixels.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._pictures.popitem(last=False)
            self.num_bytes -= oldest.pixels.nbytes
