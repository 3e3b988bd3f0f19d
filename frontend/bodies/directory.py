"""What a ZIP archive says of its entries: before each of them, and once more in the directory at the end.

An archive in which the two differ shows different readers different entries; it is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from dermserve.errors import RequestMalformed
from frontend.bodies.stream import Body

LOCAL: Final = b"PK\x03\x04"
CENTRAL: Final = b"PK\x01\x02"
_END: Final = b"PK\x05\x06"
_END_64: Final = b"PK\x06\x06"
_END_64_AT: Final = b"PK\x06\x07"
AFTER_ENTRY: Final = (LOCAL, CENTRAL, _END, _END_64)
_LOCAL_FIELDS: Final = struct.Struct("<HHHIIIIHH")
_CENTRAL_FIELDS: Final = struct.Struct("<HHHHIIIIHHHHHII")
_END_FIELDS: Final = struct.Struct("<HHHHIIH")
_UTF8: Final = 0x0800
_ENCRYPTED: Final = 0x0001 | 0x0040 | 0x2000  # whole, strongly, or with its header masked
_SIZES_BEHIND: Final = 0x0008
_ELSEWHERE: Final = 0xFFFFFFFF  # the value stands in the field of 64 bits
_FIELD_64: Final = 0x0001
_DIRECTORY_MAX: Final = 0x10000 * 3 + 64  # bytes of one record, at most


@dataclass(frozen=True)
class Entry:
    """One entry. Sizes in bytes; `packed` is its size in the archive. `wide`: sizes behind it have 64 bits."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    wide: bool

    @property
    def name(self) -> str:
        return self.raw_name.decode("utf-8" if self.flags & _UTF8 else "cp437", "replace")

    @property
    def is_folder(self) -> bool:
        return self.raw_name.endswith(b"/") and not self.size and not self.packed

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & _ENCRYPTED)

    @property
    def described_behind(self) -> bool:
        """Whether checksum and sizes come (once more) behind the data."""
        return bool(self.flags & _SIZES_BEHIND)

    @property
    def end_unknown(self) -> bool:
        """Whether only the data itself tells where it ends."""
        return self.described_behind and self.packed == 0


class Directory:
    """The entries that came, by place, to be compared with the directory at the end."""

    def __init__(self) -> None:
        self._seen: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, place: int, entry: Entry) -> None:
        self._seen[place] = entry

    async def check(self, body: Body) -> None:
        """Read all that stands behind the entries.

        Raises:
            RequestMalformed: it is damaged, is not all, or speaks of other entries.
        """
        start, named = body.place, set[int]()
        while (signature := await body.exactly(4)) == CENTRAL:
            place, entry = await self._record(body)
            seen = self._seen.get(place)
            if seen is None or place in named or _compared(seen) != _compared(entry):
                raise RequestMalformed("The ZIP archive's directory does not agree with its entries.")
            named.add(place)
        if len(named) != len(self._seen):
            raise RequestMalformed("The ZIP archive holds entries that its directory does not name.")
        size = body.place - 4 - start
        if signature == _END_64:
            (length,) = struct.unpack("<Q", await body.exactly(8))
            if length > _DIRECTORY_MAX:
                raise RequestMalformed("The ZIP archive's end is damaged.")
            await body.skip(length)
            signature = await body.exactly(4)
        if signature == _END_64_AT:
            await body.skip(16)
            signature = await body.exactly(4)
        if signature != _END:
            raise RequestMalformed("The ZIP archive's end is damaged.")
        await self._end(body, start, size)

    async def _end(self, body: Body, start: int, size: int) -> None:
        disk, first_disk, here, all_, stated_size, stated_start, comment = _END_FIELDS.unpack(
            await body.exactly(_END_FIELDS.size)
        )
        agrees = (
            (disk in (0, 0xFFFF) and first_disk in (0, 0xFFFF) and here == all_)
            and all_ in (len(self._seen), 0xFFFF)
            and stated_size in (size, _ELSEWHERE)
            and stated_start in (start, _ELSEWHERE)
        )
        if not agrees:
            raise RequestMalformed("The ZIP archive's end does not agree with its entries.")
        await body.skip(comment)
        if not await body.ended():
            raise RequestMalformed("Something stands behind the ZIP archive's end.")

    @staticmethod
    async def _record(body: Body) -> tuple[int, Entry]:
        fields = _CENTRAL_FIELDS.unpack(await body.exactly(_CENTRAL_FIELDS.size))
        _, _, flags, method, _, crc, packed, size, name_length, extra_length, comment, _, _, _, place = fields
        name, extra = await body.exactly(name_length), await body.exactly(extra_length)
        await body.skip(comment)
        size, packed, place, wide = _widened(extra, size, packed, place)
        return place, Entry(name, flags, method, crc, packed, size, wide)


async def local_header(body: Body) -> Entry:
    """What stands before an entry, behind its signature.

    Raises:
        RequestMalformed: it is damaged.
    """
    fields = _LOCAL_FIELDS.unpack(await body.exactly(_LOCAL_FIELDS.size))
    _, flags, method, _, crc, packed, size, name_length, extra_length = fields
    name, extra = await body.exactly(name_length), await body.exactly(extra_length)
    size, packed, _, wide = _widened(extra, size, packed, 0)
    return Entry(name, flags, method, crc, packed, size, wide)


def _widened(extra: bytes, size: int, packed: int, place: int) -> tuple[int, int, int, bool]:
    """Sizes and place with those that the field of 64 bits holds (APPNOTE 4.5.3), and whether there is such a field."""
    values: list[int] = [size, packed, place]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _FIELD_64:
            held = extra[at + 4 : at + 4 + length]
            for index, value in enumerate(values):
                if value == _ELSEWHERE:
                    if len(held) < 8:
                        raise RequestMalformed("An entry's sizes are damaged.")
                    values[index], held = struct.unpack_from("<Q", held)[0], held[8:]
            return values[0], values[1], values[2], True
        at += 4 + length
    return size, packed, place, False


def _compared(entry: Entry) -> Entry:
    return replace(entry, flags=entry.flags & _ENCRYPTED, wide=False)
