"""Entries of a ZIP archive (PKWARE APPNOTE 6.3) as they come, without waiting for the directory at its end.

Nothing is expanded beyond what its header promises and an image may have, nothing is written anywhere, and names are for
people alone. What stands before, between or behind the entries is refused.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

from dermserve import image
from dermserve.errors import (
    BatchTooLarge,
    DermserveError,
    ImageTooLarge,
    ImageUndecodable,
    RequestMalformed,
    UnsupportedImageType,
)
from frontend.bodies.directory import AFTER_ENTRY, LOCAL, Directory, Entry, local_header
from frontend.bodies.stream import MAX_TOTAL, Body, PartRefused

_DESCRIPTOR: Final = b"PK\x07\x08"
_STORED, _DEFLATED = 0, 8
_SLICE: Final = 256 * 1024  # bytes expanded at a time, between which others have their turn
_PACKED_SLICE: Final = 64 * 1024
_ENTRIES_MAX: Final = 4000  # folders included, which are no images
_LOOKALIKES_MAX: Final = 10_000
_SURPLUS_MAX: Final = 256 * 1024 * 1024
"""Bytes expanded in vain, beyond what an image may have, in search of the ends of entries."""

_DAMAGED: Final = "The entry's bytes are not those of its size and checksum."


class Archive:
    """The entries of an archive: `next_entry`, then `chunks`, until `next_entry` returns None."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._directory = Directory()
        self._place = 0  # of the entry under way
        self._entry: Entry | None = None
        self._left = 0  # packed bytes of it that were not looked at
        self._expanded = 0
        self._surplus = 0
        self._lookalikes = 0

    async def next_entry(self) -> str | None:
        """The name of the next file; None behind the last one, when the directory was found to agree.

        Raises:
            RequestMalformed: this is no ZIP archive, or one that cannot be read as it comes.
            BatchTooLarge: it has too many entries.
        """
        while True:
            if self._entry is not None:
                await self._leave(self._entry)
            self._place = self._body.place
            if not await self._body.holds(4) or not self._body.buffer.startswith(AFTER_ENTRY):
                raise RequestMalformed("This is no ZIP archive, or a damaged one.")
            if not self._body.buffer.startswith(LOCAL):
                await self._directory.check(self._body)
                return None
            if len(self._directory) == _ENTRIES_MAX:
                raise BatchTooLarge(f"The archive has more than {_ENTRIES_MAX:,} entries.")
            await self._body.skip(4)
            self._entry = entry = await local_header(self._body)
            self._left = entry.packed
            if not entry.is_folder:
                return entry.name
            async for _ in self.chunks():
                raise RequestMalformed("A folder of the ZIP archive holds data.")

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the entry holds, expanded.

        Raises:
            PartRefused: it is encrypted, packed in an unknown way, larger than an image may be, damaged, or not what its
                header says. The next entry can be read all the same.
            RequestMalformed: its end cannot be found.
            BatchTooLarge: the archive expands to too much.
        """
        entry = self._entry
        assert entry is not None
        refusal = _refusal(entry)
        if refusal is not None:
            raise PartRefused(refusal)
        size, crc, packed_from = 0, 0, self._body.place
        expanding = self._inflated(entry) if entry.method == _DEFLATED else self._stored(entry)
        async for chunk in expanding:
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            self._expanded += len(chunk)
            self._surplus += len(chunk) if size > image.MAX_BYTES else 0
            if self._expanded > MAX_TOTAL or self._surplus > _SURPLUS_MAX:
                raise BatchTooLarge("The archive expands to too much.")
            if not entry.end_unknown and size > entry.size:
                raise PartRefused(ImageUndecodable(_DAMAGED))
            yield chunk
        packed = self._body.place - packed_from
        if self._left:
            raise PartRefused(ImageUndecodable(_DAMAGED))
        described = await self._leave(replace(entry, packed=packed))
        if (described.packed, described.size, described.crc) != (packed, size, crc):
            raise PartRefused(ImageUndecodable(_DAMAGED))

    async def _stored(self, entry: Entry) -> AsyncIterator[bytes]:
        if entry.end_unknown:
            async for chunk in self._up_to_descriptor():
                yield chunk
        while self._left:
            yield await self._packed(_SLICE)

    async def _inflated(self, entry: Entry) -> AsyncIterator[bytes]:
        inflate, packed = zlib.decompressobj(-zlib.MAX_WBITS), b""
        while not inflate.eof:
            try:
                expanded = inflate.decompress(packed, _SLICE)
            except zlib.error as error:
                if entry.end_unknown:
                    raise RequestMalformed("An entry is damaged, and its end cannot be found.") from error
                raise PartRefused(ImageUndecodable("The entry's packed data is damaged.")) from error
            if expanded:
                yield expanded
                await asyncio.sleep(0)
            packed = inflate.unconsumed_tail
            if not packed and not expanded and not inflate.eof:
                if not entry.end_unknown and not self._left:
                    raise PartRefused(ImageUndecodable("The entry's packed data ends too early."))
                packed = await self._packed(_PACKED_SLICE)
        self._body.put_back(inflate.unused_data)
        if not entry.end_unknown:
            self._left += len(inflate.unused_data)

    async def _packed(self, most: int) -> bytes:
        """Some bytes of the entry as packed."""
        if not await self._body.holds(1):
            raise RequestMalformed("The ZIP archive is not complete.")
        assert self._entry is not None
        if self._entry.end_unknown:
            return self._body.take(most)
        taken = self._body.take(min(most, self._left))
        self._left -= len(taken)
        return taken

    async def _up_to_descriptor(self) -> AsyncIterator[bytes]:
        """Stored bytes of unknown number, up to a description that tells just this number and their checksum."""
        size, crc = 0, 0
        while True:
            at = self._body.buffer.find(_DESCRIPTOR)
            surely_data = at if at >= 0 else len(self._body.buffer) - len(_DESCRIPTOR) + 1
            if surely_data > 0:
                chunk = self._body.take(surely_data)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
                yield chunk
            elif at == 0:
                await self._body.holds(24)
                if any(found == (crc, size, size) for _, found in _descriptions(self._body.buffer)):
                    return
                self._lookalikes += 1
                if self._lookalikes > _LOOKALIKES_MAX:
                    raise RequestMalformed("The end of a stored entry cannot be found.")
                chunk = self._body.take(len(_DESCRIPTOR))
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
                yield chunk
            elif not await self._body.more():
                raise RequestMalformed("The end of a stored entry cannot be found.")

    async def _leave(self, entry: Entry) -> Entry:
        """Go to the end of the entry under way and note what it is said to be."""
        assert self._entry is not None
        if self._entry.end_unknown and entry is self._entry:
            raise RequestMalformed("The end of an entry that cannot be unpacked is not known.")
        await self._body.skip(self._left)
        self._left = 0
        if entry.described_behind:
            entry = await self._description(entry)
        self._directory.add(self._place, entry)
        self._entry = None
        return entry

    async def _description(self, entry: Entry) -> Entry:
        """What stands behind the data (APPNOTE 4.3.9): with or without signature, with sizes of 32 or 64 bits."""
        await self._body.holds(28)
        for length, (crc, packed, size) in _descriptions(self._body.buffer):
            if packed == entry.packed and self._body.buffer[length : length + 4].startswith(AFTER_ENTRY):
                await self._body.skip(length)
                return replace(entry, crc=crc, size=size)
        raise RequestMalformed("What stands behind an entry does not agree with it.")


def _refusal(entry: Entry) -> DermserveError | None:
    if entry.encrypted:
        return UnsupportedImageType("The entry is encrypted.")
    if entry.method not in (_STORED, _DEFLATED):
        return UnsupportedImageType(f"The entry is packed by method {entry.method}; stored and deflated ones are read.")
    if not entry.end_unknown and entry.size > image.MAX_BYTES:
        return ImageTooLarge(f"The entry expands to {entry.size:,} bytes; at most {image.MAX_BYTES:,} are accepted.")
    if not entry.end_unknown and entry.method == _STORED and entry.size != entry.packed:
        return ImageUndecodable(_DAMAGED)
    return None


def _descriptions(buffer: bytearray) -> list[tuple[int, tuple[int, int, int]]]:
    """How the bytes can be read as a description: its length, and checksum, packed size and size."""
    signed = 4 if buffer.startswith(_DESCRIPTOR) else 0
    forms = [(signed, "<III"), (signed, "<IQQ"), (0, "<III"), (0, "<IQQ")]
    found = []
    for start, form in forms:
        length = start + struct.calcsize(form)
        if len(buffer) >= length:
            found.append((length, struct.unpack_from(form, buffer, start)))
    return found
