"""What a JPEG may cost is bounded before it is decoded, bare or in DICOM."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from pydicom.uid import JPEGBaseline8Bit

from dermserve import image
from dermserve.errors import ImageUndecodable, UnsupportedImageType
from tests.dermserve.encoded import coded, encode, waves

RGB = waves()
BARE = encode(RGB)
YBR = {"PhotometricInterpretation": "YBR_FULL"}


def flat_progressive(side: int, scans: int) -> bytes:
    """A grey JPEG of one shade, with as many scans of one coefficient each as wanted: all valid, 40 bytes each."""

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")

    blocks = (-(-side // 8)) ** 2
    count = -(-blocks // 32_767)
    runs = [blocks // count + (number < blocks % count) for number in range(count)]
    nothing = packed("".join("0" + format(run - 16_384, "014b") for run in runs))  # runs of blocks without coefficients
    parts = [b"\xff\xd8", segment(0xDB, b"\x00" + b"\x01" * 64)]
    parts.append(segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00"))
    parts += [segment(0xC4, bytes([kind, 1, *[0] * 15, symbol])) for kind, symbol in ((0x00, 0), (0x10, 0xE0))]
    parts += [segment(0xDA, b"\x01\x01\x00\x00\x00\x00"), packed("0" * blocks)]
    for scan in range(scans - 1):
        low, place = 13 - scan // 63, scan % 63 + 1
        before = 0 if low == 13 else low + 1
        parts += [segment(0xDA, b"\x01\x01\x00" + bytes([place, place, before << 4 | low])), nothing]
    return b"".join((*parts, b"\xff\xd9"))


def test_a_jpeg_of_very_many_scans_or_segments_is_refused() -> None:
    grey = np.zeros((2000, 2000), np.uint8)
    assert image.decode(flat_progressive(2000, 100)).std() == 0
    dense = flat_progressive(2000, 101)
    many = BARE[:2] + b"\xff\xe1\x00\x02" * 5_000 + BARE[2:]
    few = BARE[:2] + b"\xff\xe1\x00\x02" * 4_000 + BARE[2:]
    assert np.array_equal(image.decode(few), image.decode(BARE))
    for data in (
        dense,
        many,
        coded([dense], JPEGBaseline8Bit, like=grey),
        coded([many], JPEGBaseline8Bit, like=RGB, **YBR),
    ):
        with pytest.raises(ImageUndecodable, match="more parts"):
            image.prepare(data)


@pytest.mark.parametrize("junk", [b"\xff", b"\xff\x00", b"\xff\x01", b"\xff\xd0", b"\x00"])
def test_a_flood_of_bytes_between_segments_costs_no_time(junk: bytes) -> None:
    flood = BARE[:2] + junk * 8_000_000 + BARE[2:]
    began = time.process_time()
    for data in (flood, coded([flood], JPEGBaseline8Bit, like=RGB, **YBR)):
        with pytest.raises((ImageUndecodable, UnsupportedImageType)):
            image.prepare(data)
    assert time.process_time() - began < 4
