"""The cache of decoded pictures holds bytes, not promises."""

import numpy as np

from flamingo_server.media import DecodedMedia
from flamingo_server.media.cache import PictureCache


def picture(num_bytes: int) -> DecodedMedia:
    return DecodedMedia(np.zeros((1, num_bytes, 1), dtype=np.uint8), "digest", 1, 1, "PNG")


def test_the_least_recently_used_goes_first() -> None:
    cache = PictureCache(max_bytes=10)
    cache.put(b"a", picture(4))
    cache.put(b"b", picture(4))
    cache.get(b"a")
    cache.put(b"c", picture(4))
    assert [cache.get(key) is None for key in (b"a", b"b", b"c")] == [False, True, False]


def test_bytes_are_counted_and_bounded() -> None:
    cache = PictureCache(max_bytes=10)
    for size in (3, 9, 2, 5, 4, 1):
        cache.put(bytes([size]), picture(size))
        assert cache.num_bytes <= 10
    assert cache.num_bytes == 10 and len(cache) == 3


def test_a_picture_larger_than_the_cache_evicts_nobody() -> None:
    cache = PictureCache(max_bytes=10)
    cache.put(b"a", picture(10))
    cache.put(b"b", picture(11))
    assert cache.get(b"a") is not None and cache.get(b"b") is None


def test_putting_twice_counts_once() -> None:
    cache = PictureCache(max_bytes=10)
    cache.put(b"a", picture(4))
    cache.put(b"a", picture(4))
    assert cache.num_bytes == 4
