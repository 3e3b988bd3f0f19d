"""What compressed streams say of themselves, read before a decoder sees them.

Decoders allocate by what stands in the stream. What is checked here is that it agrees with the DICOM header, which was
checked before, and that a JPEG 2000 stream is whole and asks for no more parts than its bytes can hold.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from dermserve.errors import ImageUndecodable, UnsupportedImageType

MAX_TILES: Final = 16_384
"""OpenJPEG keeps about 8 KB for each tile of a stream before it decodes any."""

MAX_BLOCKS: Final = 1_000_000
"""Code-blocks of one tile; blocks of 32×32 in three components of 50 megapixels are 150,000."""

MAX_PACKETS: Final = 4_000_000
"""Packets of a stream; twelve layers of 64×64 tiles in 20 megapixels are 1,000,000."""

MAX_SEGMENTS: Final = 200_000
"""Marker segments of a JPEG 2000 stream, those of its tile-parts included: a dozen for each of the most tiles."""

MAX_STYLES: Final = 1_000
"""Coding styles named in a stream, those of tiles included."""

_LOSSLESS: Final = 0xC3
# T.81 table B.1: start of frame, but for 0xC4 (Huffman tables), 0xC8 (reserved) and 0xCC (arithmetic conditioning).
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FILL: Final = re.compile(rb"\xff+")  # a marker's first byte, and any more before it (B.1.1.2)
_DAMAGED: Final = "The compressed DICOM pixel data is truncated or corrupt."


class JpegFrame(NamedTuple):
    """The frame header of a JPEG or JPEG-LS stream (T.81 B.2.2): sizes in pixels, `precision` in bits."""

    process: int
    precision: int
    height: int
    width: int
    components: int

    @property
    def lossless(self) -> bool:
        """Whether it is the Huffman-coded lossless process (14)."""
        return self.process == _LOSSLESS


def jpeg_frame(stream: bytes) -> JpegFrame:
    """The first frame header of a JPEG stream.

    Raises:
        ImageUndecodable: there is none.
    """
    for marker, start, _ in _segments(stream):
        if marker in _JPEG_FRAMES and len(stream) >= start + 6:
            return JpegFrame(marker, *struct.unpack_from(">BHHB", stream, start))
    raise ImageUndecodable(_DAMAGED)


def without_colour_markers(stream: bytes) -> bytes:
    """The JPEG stream without application segments but for one that says: these components are no YCbCr."""
    kept = [stream[:2], ADOBE_RGB]
    place = 2
    for marker, start, end in _segments(stream):
        if not 0xE0 <= marker <= 0xEF:
            kept.append(stream[start - 4 : end])
        place = end
    return b"".join((*kept, stream[place:]))


ADOBE_RGB: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""An Adobe marker with "no colour transform": without any marker a decoder takes three components for YCbCr."""


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's body, up to the first scan."""
    place = 2
    while (filled := _FILL.match(stream, place)) and filled.end() + 3 <= len(stream):
        marker, length = struct.unpack_from(">BH", stream, filled.end())
        start = filled.end() + 3
        place = start - 2 + length
        if marker in (0xDA, 0xD9) or length < 2 or place > len(stream):
            break
        yield marker, start, place


class Jpeg2000(NamedTuple):
    """The image and tile size of a JPEG 2000 codestream (T.800 A.5.1) and whether its components were transformed."""

    width: int
    height: int
    components: int
    precision: int
    signed: bool
    transformed: bool


def jpeg_2000(stream: bytes) -> tuple[bytes, Jpeg2000]:
    """The codestream, taken out of a JP2 file where it lies in one, and what it says of itself.

    Raises:
        ImageUndecodable: it is damaged, a tile is missing, or it promises more than its bytes can hold.
        UnsupportedImageType: it is sub-sampled, starts off the origin, mixes precisions or uses extensions of part 2.
    """
    stream = _unboxed(stream)
    ended = stream.rstrip(b"\x00")  # OpenJPEG takes padding for part of a tile whose length is not said
    if ended.endswith(b"\xff\xd9"):
        stream = ended
    try:
        return stream, _Walk(stream).image
    except struct.error as error:
        raise ImageUndecodable(_DAMAGED) from error


def _unboxed(stream: bytes) -> bytes:
    """T.800 I.4: boxes have a length and a type. DICOM wants none (PS3.5 §A.4.4), but some write a whole JP2 file."""
    place = 0
    if stream[4:8] != b"jP  ":
        return stream
    while place + 8 <= len(stream):
        length, kind = struct.unpack_from(">I4s", stream, place)
        if kind == b"jp2c":
            return stream[place + 8 : place + length if length else None]
        if length < 8:
            break
        place += length
    raise ImageUndecodable(_DAMAGED)


class _Walk:
    """One pass over the marker segments of a codestream; bodies of tiles are jumped over by their length."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        if stream[:4] != b"\xff\x4f\xff\x51":
            raise ImageUndecodable(_DAMAGED)
        self._layers = 1
        self._styles: list[_Style] = []
        self._segments = 0
        self._transformed = False
        self._size()
        self._tile_parts(self._headers(2, 0x90))
        self._bounds()

    @property
    def image(self) -> Jpeg2000:
        return Jpeg2000(*self._extent, self._components, *self._sample, self._transformed)

    def _size(self) -> None:
        values = struct.unpack_from(">8IH", self._stream, 8)
        right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, self._components = values
        samples = {self._stream[place : place + 3] for place in range(42, 42 + 3 * self._components, 3)}
        if len(samples) != 1 or (sample := samples.pop())[1:] != b"\x01\x01" or left or top or tile_left or tile_top:
            raise UnsupportedImageType("A JPEG 2000 stream of this form is not accepted.")
        if not (right and bottom and tile_width and tile_height):
            raise ImageUndecodable(_DAMAGED)
        self._extent = right, bottom
        self._sample = (sample[0] & 0x7F) + 1, bool(sample[0] & 0x80)
        self._tile = min(tile_width, right), min(tile_height, bottom)
        self._tiles = -(-right // tile_width) * -(-bottom // tile_height)
        if self._tiles > MAX_TILES:
            raise ImageUndecodable(f"The JPEG 2000 stream has more than {MAX_TILES:,} tiles.")

    def _headers(self, place: int, last: int) -> int:
        """Read marker segments up to the marker 0xFF`last`; its place."""
        while True:
            prefix, marker, length = struct.unpack_from(">BBH", self._stream, place)
            self._segments += 1
            if prefix != 0xFF or self._segments > MAX_SEGMENTS:
                raise ImageUndecodable(_DAMAGED)
            if marker == last:
                return place
            if marker in (0x74, 0x75, 0x77, 0x78):  # MCT, MCC, MCO and CBD of T.801
                raise UnsupportedImageType("JPEG 2000 with component transforms of part 2 is not accepted.")
            if length < 2 or place + 2 + length > len(self._stream):
                raise ImageUndecodable(_DAMAGED)
            if marker == 0x52:
                _, self._layers, transform = struct.unpack_from(">BHB", self._stream, place + 5)
                self._transformed = bool(transform)
                self._style(place + 9, self._stream[place + 4])
            elif marker == 0x53:
                wide = 2 if self._components > 256 else 1
                self._style(place + 5 + wide, self._stream[place + 4 + wide])
            place += 2 + length

    def _style(self, place: int, coding: int) -> None:
        levels, width, height = struct.unpack_from(">BBB", self._stream, place)
        if levels > 32 or width > 8 or height > 8 or width + height > 8:
            raise ImageUndecodable(_DAMAGED)
        sizes = struct.unpack_from(f">{levels + 1}B", self._stream, place + 5) if coding & 1 else (0xFF,) * (levels + 1)
        self._styles.append(_Style(4 << width, 4 << height, sizes))
        if len(self._styles) > MAX_STYLES:
            raise UnsupportedImageType("A JPEG 2000 stream of this form is not accepted.")

    def _tile_parts(self, place: int) -> None:
        """T.800 A.4.2. A tile without any part would be filled with one colour, and nothing said."""
        seen: set[int] = set()
        end = len(self._stream)
        while self._stream[place : place + 2] == b"\xff\x90":
            length, tile, size = struct.unpack_from(">HHI", self._stream, place + 2)
            following = place + size if size else end - 2  # where then the end mark must stand
            if (
                length != 10
                or following > end
                or following < self._headers(place + 12, 0x93) + 2
                or tile >= self._tiles
            ):
                raise ImageUndecodable(_DAMAGED)
            seen.add(tile)
            place = following
        if len(seen) != self._tiles or (place != end and self._stream[place : place + 2] != b"\xff\xd9"):
            raise ImageUndecodable(_DAMAGED)

    def _bounds(self) -> None:
        """A packet takes at least a byte (T.800 B.10.3), so a stream cannot have more of them than bytes."""
        if not self._styles:
            raise ImageUndecodable(_DAMAGED)
        counts = [style.parts(*self._tile) for style in self._styles]
        packets = max(precincts for precincts, _ in counts) * self._layers * self._components * self._tiles
        blocks = max(blocks for _, blocks in counts) * self._components
        if packets > min(MAX_PACKETS, len(self._stream)) or blocks > MAX_BLOCKS:
            raise ImageUndecodable("The JPEG 2000 stream promises more parts than it can hold.")


class _Style(NamedTuple):
    """Coding style of a component (T.800 A.6.1): sides of a code-block, and the packed exponents of each precinct."""

    width: int
    height: int
    precincts: tuple[int, ...]

    def parts(self, width: int, height: int) -> tuple[int, int]:
        """Precincts and code-blocks of one component of a tile of this size, in pixels."""
        precincts = blocks = 0
        for resolution, size in enumerate(self.precincts):
            level = len(self.precincts) - 1 - resolution
            across, down = _divided(width, 1 << level), _divided(height, 1 << level)
            wide, high = 1 << (size & 15), 1 << (size >> 4)
            here = _divided(across, wide) * _divided(down, high)
            half = 1 if resolution == 0 else 2  # above the lowest, three bands of half the size (B.7)
            block = min(self.width, max(1, wide // half)), min(self.height, max(1, high // half))
            in_band = _divided(_divided(across, half), block[0]) * _divided(_divided(down, half), block[1])
            precincts += here
            blocks += max(here, in_band) * (1 if resolution == 0 else 3)
        return precincts, blocks


def _divided(size: int, by: int) -> int:
    """Rounded up."""
    return -(-size // by)
