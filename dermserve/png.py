"""Is a PNG file whole? Pillow accepts one whose data stops early and leaves the missing rows black."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from dermserve.errors import ImageUndecodable

_SIGNATURE_BYTES: Final = 8
_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type, PNG 1.2 §11.2.2
# First column, first row, column step, row step of Adam7's passes, PNG 1.2 §8.2.
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def require_whole(data: bytes) -> None:
    """Check every chunk's CRC, the end chunk, and that the rows promised are there.

    Call it once the dimensions are known to be acceptable: it inflates no more than they promise.

    Raises:
        ImageUndecodable: something is missing or damaged.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, _SIGNATURE_BYTES + 8)
    expected = sum(
        rows * (1 + (columns * depth * _SAMPLES[colour] + 7) // 8)
        for rows, columns in _passes(width, height, bool(interlaced))
        if columns
    )
    inflate, found = zlib.decompressobj(), 0
    for kind, body in _chunks(data):
        if kind == b"IDAT" and found < expected:
            found += len(inflate.decompress(body, expected - found))
    if found < expected:
        raise ImageUndecodable("The PNG data is truncated or corrupt.")


def _passes(width: int, height: int, interlaced: bool) -> list[tuple[int, int]]:
    """Rows and columns of each pass."""
    if not interlaced:
        return [(height, width)]
    return [(-(-(height - y) // dy), -(-(width - x) // dx)) for x, y, dx, dy in _ADAM7]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = _SIGNATURE_BYTES
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        end = place + 8 + length
        if len(body) < length or data[end : end + 4] != struct.pack(">I", zlib.crc32(kind + body)):
            break
        yield kind, body
        if kind == b"IEND":
            return
        place = end + 4
    raise ImageUndecodable("The PNG data is truncated or corrupt.")
