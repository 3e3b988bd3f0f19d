"""DICOM files (PS3.10 §7): a data set behind its file meta information, and how to make one."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final, NamedTuple

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from dermserve.dicom.elements import BIG_ENDIAN, EXPLICIT, IMPLICIT, DataSet, Encoding
from dermserve.errors import DicomNotUnderstood, ImageTooLarge, ImageUndecodable

MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of an object with one frame, and bytes to which a deflated data set may grow: `image.MAX_BYTES`."""

_PREAMBLE: Final = bytes(128) + b"DICM"
_GROUP_LENGTH: Final = b"\x02\x00\x00\x00UL\x04\x00"  # PS3.10 §7.1, table 7.1-1: required, and first
_SOP_CLASS: Final = 0x00020002
_SOP_INSTANCE: Final = 0x00020003
_TRANSFER_SYNTAX: Final = 0x00020010
_META: Final = frozenset({_SOP_CLASS, _SOP_INSTANCE, _TRANSFER_SYNTAX})

_ENCODINGS: Final[dict[str, Encoding]] = {ImplicitVRLittleEndian: IMPLICIT, ExplicitVRBigEndian: BIG_ENDIAN}

_IMPLEMENTATION: Final = "2.25.129318207452617388917305624486521913457"
_LONG: Final = frozenset({"OB", "OW", "SQ", "UN", "UT"})
_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")


class File(NamedTuple):
    """A file taken apart: SOP class and instance UID as the meta group says them, and the data set, inflated."""

    syntax: str
    sop_class: str
    sop_instance: str
    dataset: DataSet


def read(data: bytes) -> File:
    """Take a file apart; nothing is copied unless it is deflated, and then at most `MAX_BYTES` bytes are made.

    Raises:
        ImageUndecodable: the meta group or the deflated stream is damaged.
        ImageTooLarge: the data set inflates beyond the bound.
    """
    start = len(_PREAMBLE)
    if data[start - 4 : start] != b"DICM" or data[start : start + 8] != _GROUP_LENGTH:
        raise ImageUndecodable("The DICOM file's meta information is missing or damaged.")
    end = start + 12 + int.from_bytes(data[start + 8 : start + 12], "little")
    found = DataSet(data, EXPLICIT).find(_META, (start + 12, end))
    values = {tag: text(data[element.start : element.end]) for tag, element in found.items()}
    syntax = values.get(_TRANSFER_SYNTAX, "")
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset = DataSet(_inflate(memoryview(data)[end:]), EXPLICIT)
    else:
        dataset = DataSet(data, encoding(syntax), end)
    return File(syntax, values.get(_SOP_CLASS, ""), values.get(_SOP_INSTANCE, ""), dataset)


def encoding(syntax: str) -> Encoding:
    """How a transfer syntax writes elements: explicit little endian but for two (PS3.5 annex A)."""
    return _ENCODINGS.get(syntax, EXPLICIT)


def file(dataset: bytes, *, sop_class: str, sop_instance: str, syntax: str) -> bytes:
    """A file around the data set that a C-STORE brought: `syntax` is that of its presentation context.

    Args:
        dataset: as received, deflated where the transfer syntax says so.
        sop_class: affected SOP class UID of the request.
        sop_instance: affected SOP instance UID of the request.
        syntax: transfer syntax UID.

    Raises:
        DicomNotUnderstood: one of the three is no UID.
    """
    for name, uid in (("SOP class", sop_class), ("SOP instance", sop_instance), ("transfer syntax", syntax)):
        if not is_uid(uid):
            raise DicomNotUnderstood(f"The {name} UID is missing or malformed.")
    return b"".join((_meta(syntax, sop_class, sop_instance), dataset))


def is_uid(value: str) -> bool:
    """PS3.5 §9.1: numbers without leading zeros, dots between them, 64 characters at most."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def element(tag: int, vr: str, value: bytes | str | int) -> bytes:
    """One element in explicit VR little endian; `value`: bytes, text, or a number of 16 bits. Padded to even length."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode("ascii")
    if len(value) % 2:
        value += b"\x00" if vr in ("UI", "OB") else b" "
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    return head + (struct.pack("<xxI", len(value)) if vr in _LONG else struct.pack("<H", len(value))) + value


def text(value: bytes) -> str:
    """A value of plain characters without its padding."""
    return value.decode("latin-1").strip("\x00 ")


def _meta(syntax: str, sop_class: str, sop_instance: str) -> bytes:
    group = element(0x00020001, "OB", b"\x00\x01")
    if sop_class:
        group += element(_SOP_CLASS, "UI", sop_class) + element(_SOP_INSTANCE, "UI", sop_instance)
    group += element(_TRANSFER_SYNTAX, "UI", syntax) + element(0x00020012, "UI", _IMPLEMENTATION)
    return _PREAMBLE + element(0x00020000, "UL", struct.pack("<I", len(group))) + group


def bare(dataset: bytes, syntax: str) -> bytes:
    """A file in form only: it names neither SOP class nor instance, because it is of no use but to carry pixels."""
    return _meta(syntax, "", "") + dataset


def _inflate(body: memoryview) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # PS3.5 §A.5: without the header that zlib would expect
    try:
        inflated = inflate.decompress(body, MAX_BYTES + 1)
    except zlib.error as error:
        raise ImageUndecodable("The deflated DICOM data set is damaged.") from error
    if len(inflated) > MAX_BYTES:
        raise ImageTooLarge(f"The deflated DICOM data set grows beyond {MAX_BYTES:,} bytes.")
    if not inflate.eof:
        raise ImageUndecodable("The deflated DICOM data set is truncated.")
    return inflated
