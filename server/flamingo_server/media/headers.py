"""What two formats say in their headers, read before Pillow would pay for the answer.

Pillow creates the WebP canvas while opening the file, and counts GIF frames by seeking them all.
"""

from __future__ import annotations

_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP's canvas, or None where the header is not understood.

    Bit layout: the WebP container specification and RFC 6386, section 9.1.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if kind == b"VP8L":
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return None


def count_gif_frames(data: bytes, stop_after: int) -> int:
    """Frames of a GIF, counting no further than `stop_after + 1`. Damage ends the count."""
    num_frames, at = 0, 13 + _palette_bytes(data[10:11])
    while num_frames <= stop_after and at < len(data):
        if data[at] == _GIF_IMAGE:
            num_frames += 1
            at = _skip_blocks(data, at + 11 + _palette_bytes(data[at + 9 : at + 10]))
        elif data[at] == _GIF_EXTENSION:
            at = _skip_blocks(data, at + 2)
        else:
            break
    return num_frames


def _skip_blocks(data: bytes, at: int) -> int:
    """First position after a chain of length-prefixed blocks, which a zero length ends."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def _palette_bytes(flags: bytes) -> int:
    packed = flags[0] if flags else 0
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _little(field: bytes) -> int:
    return int.from_bytes(field, "little")
