"""Frames out of encapsulated pixel data (PS3.5 §A.4): which fragments belong to which frame."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from dermserve.dicom.elements import ITEM, SEQUENCE_END
from dermserve.errors import ImageUndecodable

MAX_FRAGMENTS: Final = 100_000
"""Fragments of one object: a hundred for each of the most frames."""

# How a JPEG or JPEG-LS stream, a JPEG 2000 codestream and a JP2 file begin.
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")


class _Fragment(NamedTuple):
    """`offset`: from the first byte after the basic offset table, as offset tables count. `data[start:end]` is the value."""

    offset: int
    start: int
    end: int


class Fragments:
    """The fragments of each frame, found once; `frame` copies one frame's bytes only.

    Args:
        data: the bytes that the pixel data lies in.
        start: where its value starts.
        frames: how many frames the header promises.
        extended: the extended offset table (PS3.3 C.7.6.3.1.8) as it is stored, or nothing.
        whole: a frame is one fragment, as in RLE (PS3.5 §A.4.2).

    Raises:
        ImageUndecodable: the fragments are cut short, or tables, fragments and the number of frames contradict each other.
    """

    def __init__(self, data: bytes, start: int, *, frames: int, extended: bytes, whole: bool) -> None:
        self._data = data
        table, fragments = _fragments(data, start)
        if whole and len(fragments) != frames:
            raise ImageUndecodable("The number of fragments is not that of the frames.")
        if len(fragments) == frames:
            firsts = list(range(frames))
        elif frames == 1:
            firsts = [0]
        elif table or extended:
            firsts = _by_table(fragments, table or struct.unpack(f"<{len(extended) // 8}Q", extended))
        else:
            firsts = [place for place, one in enumerate(fragments) if data.startswith(_STARTS, one.start, one.end)]
        if len(firsts) != frames or not fragments or firsts[0] != 0:
            raise ImageUndecodable("The number of frames in the DICOM pixel data is not the one that its header says.")
        if frames == 1 and any(data.startswith(_STARTS, one.start, one.end) for one in fragments[1:]):
            raise ImageUndecodable("The DICOM pixel data holds more frames than its header says.")
        self._frames = [fragments[a:b] for a, b in zip(firsts, [*firsts[1:], len(fragments)], strict=True)]

    def frame(self, index: int) -> bytes:
        """The frame's stream, its fragments joined."""
        return b"".join(self._data[one.start : one.end] for one in self._frames[index])


def encapsulate(frame: bytes) -> bytes:
    """The value of pixel data that holds one frame in one fragment, behind an empty offset table."""
    frame += bytes(len(frame) % 2)
    return struct.pack("<HHIHHI", *_ITEM, 0, *_ITEM, len(frame)) + frame + struct.pack("<HHI", *_END, 0)


_ITEM: Final = (ITEM >> 16, ITEM & 0xFFFF)
_END: Final = (SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF)


def _fragments(data: bytes, place: int) -> tuple[tuple[int, ...], list[_Fragment]]:
    """The basic offset table, and the fragments after it."""
    table: tuple[int, ...] | None = None
    found: list[_Fragment] = []
    origin = 0
    while len(found) <= MAX_FRAGMENTS and place + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, place)
        tag, start, end = group << 16 | element, place + 8, place + 8 + length
        if tag == SEQUENCE_END and table is not None:
            return table, found
        if tag != ITEM or end > len(data):
            break
        if table is None:
            if length > 4 * MAX_FRAGMENTS:
                break
            table, origin = struct.unpack_from(f"<{length // 4}I", data, start), end
        else:
            found.append(_Fragment(place - origin, start, end))
        place = end
    raise ImageUndecodable("The encapsulated DICOM pixel data is truncated or damaged.")


def _by_table(fragments: list[_Fragment], table: tuple[int, ...]) -> list[int]:
    """The number of each frame's first fragment; offsets must grow and each name a fragment."""
    numbers = {fragment.offset: number for number, fragment in enumerate(fragments)}
    firsts = [numbers.get(offset, -1) for offset in table]
    if firsts != sorted(set(firsts)) or -1 in firsts:
        raise ImageUndecodable("The DICOM offset table does not fit the pixel data.")
    return firsts
