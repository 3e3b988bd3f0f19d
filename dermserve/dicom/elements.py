"""Where the elements of a DICOM data set lie (PS3.5 §7), without building anything of what is not asked for.

pydicom makes an object of every item of every sequence: 32 MiB of empty items become gigabytes and most of a minute. This
walks over them instead, counts what it passes and keeps only the places of the tags that were named.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from dermserve.errors import ImageUndecodable

MAX_ELEMENTS: Final = 250_000
"""Elements and items of one data set, nested ones included; a thousand frames with their functional groups have 50,000."""

MAX_DEPTH: Final = 32
"""Sequences within sequences; structured reports, the deepest objects there are, rarely pass ten."""

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD

# PS3.5 §7.1.2, table 7.1-2: these have a length of two bytes, all others, future ones too, of four after two reserved.
_SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())


class Encoding(NamedTuple):
    """How elements are written. `order`: `<` for little endian, `>` for big, as `struct` says it."""

    explicit: bool
    order: str


IMPLICIT: Final = Encoding(explicit=False, order="<")
EXPLICIT: Final = Encoding(explicit=True, order="<")
BIG_ENDIAN: Final = Encoding(explicit=True, order=">")


class Element(NamedTuple):
    """`vr` is empty where the encoding is implicit. The value is `data[start:end]`; `undefined`: it had no length."""

    vr: bytes
    start: int
    end: int
    undefined: bool


class DataSet:
    """A data set that lies in `data` from `start` on, and how many elements may still be passed in it."""

    def __init__(self, data: bytes, encoding: Encoding, start: int = 0) -> None:
        self.data = data
        self.encoding = encoding
        self._start = start
        self._left = MAX_ELEMENTS

    def find(
        self, wanted: Collection[int], within: tuple[int, int] | None = None, *, last: int = 0xFFFFFFFF
    ) -> dict[int, Element]:
        """The places of the `wanted` tags, in an item's span or else in the whole; the walk stops before a tag beyond `last`.

        `last` itself may have no end of its own: encapsulated pixel data is left to its reader.

        Raises:
            ImageUndecodable: what stands there is no data set, a wanted tag stands twice, or a bound is passed.
        """
        found: dict[int, Element] = {}
        place, end = within or (self._start, len(self.data))
        while place < end:
            tag, vr, length, value = self._head(place, end, self.encoding)
            if tag > last:
                break
            undefined = length == UNDEFINED
            place = value + length
            if undefined:
                place = end if tag == last else self._past(value, end, vr)
            if place > end:
                raise ImageUndecodable("A DICOM element is longer than what holds it.")
            if tag in wanted:
                if tag in found:
                    raise ImageUndecodable("The DICOM header names an attribute twice.")
                found[tag] = Element(vr, value, place, undefined)
            if tag == last:
                break
        return found

    def items(self, sequence: Element) -> Iterator[tuple[int, int]]:
        """Start and end of what each item of a sequence holds, its end marks included where it has such."""
        place = sequence.start
        while place < sequence.end:
            tag, _, length, value = self._head(place, sequence.end, self.encoding)
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise ImageUndecodable("A DICOM sequence holds something else than items.")
            place = self._past_item(value, sequence.end) if length == UNDEFINED else value + length
            if place > sequence.end:
                raise ImageUndecodable("A DICOM item is longer than its sequence.")
            # The end mark of an item of undefined length takes eight bytes.
            yield value, place - (8 if length == UNDEFINED else 0)

    def _head(self, place: int, end: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
        """Tag, VR, length and the place of the value."""
        self._left -= 1
        if self._left < 0:
            raise ImageUndecodable(f"The DICOM header has more than {MAX_ELEMENTS:,} elements.")
        if place + 8 > end:
            raise ImageUndecodable("The DICOM header is truncated.")
        group, element, length = struct.unpack_from(encoding.order + "HHI", self.data, place)
        tag = group << 16 | element
        if not encoding.explicit or group == 0xFFFE:
            return tag, b"", length, place + 8
        vr = self.data[place + 4 : place + 6]
        if vr in _SHORT:
            return tag, vr, struct.unpack_from(encoding.order + "H", self.data, place + 6)[0], place + 8
        if not (vr.isalpha() and vr.isupper()) or place + 12 > end:
            raise ImageUndecodable("The DICOM header is damaged.")
        return tag, vr, struct.unpack_from(encoding.order + "I", self.data, place + 8)[0], place + 12

    def _past_item(self, place: int, end: int) -> int:
        return self._walk(place, end, [(True, self.encoding)])

    def _past(self, place: int, end: int, vr: bytes) -> int:
        # PS3.5 §6.2.2 note 2: a sequence whose VR was not known is written in implicit little endian.
        return self._walk(place, end, [(False, IMPLICIT if vr == b"UN" else self.encoding)])

    def _walk(self, place: int, end: int, inside: list[tuple[bool, Encoding]]) -> int:
        """The place after the end mark of the outermost of `inside`, a stack of (is an item, encoding)."""
        while inside:
            if len(inside) > 2 * MAX_DEPTH:
                raise ImageUndecodable(f"DICOM sequences are nested more than {MAX_DEPTH} deep.")
            in_item, encoding = inside[-1]
            tag, vr, length, value = self._head(place, end, encoding)
            place = value
            if tag == (ITEM_END if in_item else SEQUENCE_END):
                inside.pop()
            elif in_item == (tag >> 16 == 0xFFFE):
                raise ImageUndecodable("The marks of DICOM sequences and items do not match.")
            elif length != UNDEFINED:
                place += length
            elif in_item:
                inside.append((False, IMPLICIT if vr == b"UN" else encoding))
            else:
                inside.append((True, encoding))
        return place
