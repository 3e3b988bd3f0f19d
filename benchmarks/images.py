"""Images for load runs: drawn lesions, and any number of files that differ in bytes but not in one pixel.

A server answers a repeat of the same bytes from its database, so a load run needs new bytes for every image. A JPEG
comment is the cheapest way: no decoder looks at it.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence

from dermserve import sample

_COMMENT = b"\xff\xfe"
_MAX_COMMENT = 65_533  # a segment's two-byte length counts itself (ITU-T T.81 §B.2.4.5)


def drawn(count: int) -> list[bytes]:
    """The first `count` drawn lesion images as JPEG files; about 60 ms each."""
    return [sample.jpeg(seed) for seed in range(count)]


def stamped(jpeg: bytes, text: str) -> bytes:
    """The same JPEG picture with `text` as a comment segment: other bytes, identical pixels.

    Raises:
        ValueError: not a JPEG file, or the text is too long for one segment.
    """
    comment = text.encode()
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG file")
    if len(comment) > _MAX_COMMENT:
        raise ValueError(f"a comment holds at most {_MAX_COMMENT} bytes")
    at = 2
    while jpeg[at] == 0xFF and 0xE0 <= jpeg[at + 1] <= 0xEF:  # JFIF and EXIF want to come first
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + _COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[at:]


def endless(pictures: Sequence[bytes]) -> Iterator[bytes]:
    """The pictures over and over, no two files alike: not within this run, and not between runs."""
    run = secrets.token_hex(8)
    for number, picture in enumerate(itertools.cycle(pictures)):
        yield stamped(picture, f"dermserve load run {run}, image {number}")
