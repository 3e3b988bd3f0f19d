"""What contradicts itself is refused by name, before anything large is made of it."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dermserve import dicom, image
from dermserve.dicom import codestream, elements, part10
from dermserve.errors import ImageError, ImageTooLarge, ImageUndecodable, UnsupportedImageType
from tests.dermserve.encoded import coded, encode, stream, waves
from tests.dermserve.encoded import dicom as make

CORPUS = Path(__file__).parent / "corpus"
RGB = waves()
GREY = waves(colour=False)
BARE = encode(RGB)
YBR = {"PhotometricInterpretation": "YBR_FULL"}
WAVELET = stream(RGB, JPEG2000Lossless)


def other_size(old: bytes, place: int, form: str, *values: int) -> bytes:
    changed = bytearray(old)
    struct.pack_into(form, changed, place, *values)
    return bytes(changed)


HUGE_SIZ = other_size(WAVELET, 8, ">2I", 60_000, 60_000)
HUGE_SIZ_AND_TILE = other_size(HUGE_SIZ, 24, ">2I", 60_000, 60_000)
SOF = BARE.index(b"\xff\xc0")
LS = stream(RGB, JPEGLSLossless)
RLE = stream(RGB, RLELossless)


@pytest.mark.parametrize(
    "data",
    [
        coded([HUGE_SIZ], JPEG2000Lossless, like=RGB),
        coded([HUGE_SIZ_AND_TILE], JPEG2000Lossless, like=RGB),
        coded([stream(waves(48, 80), JPEG2000Lossless)], JPEG2000Lossless, like=RGB),
        coded([stream(GREY, JPEG2000Lossless)], JPEG2000Lossless, like=RGB),
        coded([stream(waves(bits=16, colour=False), JPEG2000Lossless)], JPEG2000Lossless, like=GREY),
        coded([WAVELET], JPEG2000Lossless, like=RGB, PhotometricInterpretation="YBR_FULL"),
        coded([stream(GREY, JPEG2000Lossless)], JPEG2000Lossless, like=GREY, PixelRepresentation=1),
        coded([other_size(BARE, SOF + 5, ">2H", 60_000, 60_000)], JPEGBaseline8Bit, like=RGB, **YBR),
        coded([encode(waves(64, 48))], JPEGBaseline8Bit, like=RGB, **YBR),
        coded([encode(GREY)], JPEGBaseline8Bit, like=RGB, **YBR),
        coded([BARE], JPEGBaseline8Bit, like=GREY),
        coded([BARE], JPEGLosslessSV1, like=RGB),
        coded([(CORPUS / "lossless-rgb.jpg").read_bytes()], JPEGBaseline8Bit, like=RGB),
        coded([LS], JPEGLSLossless, like=waves(64, 48)),
        coded([other_size(LS, LS.index(b"\xff\xf7") + 5, ">2H", 60_000, 60_000)], JPEGLSLossless, like=RGB),
        coded([RLE], RLELossless, like=waves(64, 52)),
        coded([RLE], RLELossless, like=GREY),
        coded([BARE], RLELossless, like=RGB),
        coded([RLE], JPEG2000Lossless, like=RGB),
        coded([BARE], JPEG2000Lossless, like=RGB),
        make(RGB, Rows=47),
        make(RGB, Columns=65),
        make(RGB, SamplesPerPixel=1),
        make(RGB, BitsAllocated=16, BitsStored=16, HighBit=15),
        make(GREY, BitsStored=9, HighBit=8),
        make(GREY, BitsStored=7),
        make(waves(bits=16, colour=False), BitsStored=0, HighBit=0),
        make(GREY, RescaleSlope="1e300"),
        make(GREY, PixelData=encapsulate([GREY.tobytes()])),
        make(RGB).replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.5\x00"),
        coded([RLE], RLELossless, like=RGB).replace(b"1.2.840.10008.1.2.5\x00", b"1.2.840.10008.1.2.1\x00"),
    ],
    ids=[
        "siz", "siz-and-tile", "wavelet-width", "wavelet-grey", "wavelet-bits", "wavelet-ybr", "wavelet-sign", "sof",
        "jpeg-size", "jpeg-grey", "jpeg-colour", "jpeg-not-lossless", "jpeg-lossless", "ls-size", "ls-huge", "rle-size",
        "rle-planes", "rle-is-jpeg", "wavelet-is-rle", "wavelet-is-jpeg", "rows", "columns", "samples", "bits", "stored",
        "high", "no-bits", "slope", "fragments-in-raw", "raw-as-rle", "rle-as-raw",
    ],
)  # fmt: skip
def test_header_and_pixels_must_agree(data: bytes) -> None:
    with pytest.raises((ImageUndecodable, UnsupportedImageType)):
        image.prepare(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (coded([HUGE_SIZ_AND_TILE], JPEG2000Lossless, like=RGB, Rows=60_000, Columns=60_000), ImageTooLarge),
        (coded([np.zeros((32, 32), np.uint8)], DeflatedExplicitVRLittleEndian, Rows=6000, Columns=6000,
               PixelData=bytes(200_000_000)), ImageTooLarge),
        (coded([HUGE_SIZ_AND_TILE], JPEG2000Lossless, like=RGB), ImageUndecodable),
        (coded([struct.pack("<16I", 3, *(64,) * 3, *(0,) * 12) + b"\x81\x00" * 8_000_000], RLELossless, like=RGB),
         ImageUndecodable),
    ],
    ids=["wavelet", "deflated", "wavelet-alone", "runs"],
)  # fmt: skip
def test_bombs_cost_neither_time_nor_memory(data: bytes, error: type[Exception]) -> None:
    program = (
        "import sys, time\nfrom dermserve import image\nfrom dermserve.errors import ImageError\n"
        "data = sys.stdin.buffer.read()\nstart = time.process_time()\n"
        "try: image.prepare(data)\nexcept ImageError as e: print(type(e).__name__, time.process_time() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=data,
        capture_output=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )
    name, seconds = done.stdout.split()
    assert name.decode() == error.__name__
    assert float(seconds) < 2


def nested(depth: int, *, undefined: bool) -> Dataset:
    inner = Dataset()
    inner.CodeMeaning = "x"
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = Sequence([inner])
        outer["ContentSequence"].is_undefined_length = undefined
        inner = outer
    return inner


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.keyword)
def test_sequences_are_passed_over_and_no_deeper_than_the_bound(syntax: str) -> None:
    for undefined in (False, True):
        data = coded([RGB], syntax, ContentSequence=Sequence([nested(8, undefined=undefined)]))
        assert np.array_equal(image.decode(data), RGB)
    deep = b"".join(b"\x40\x00\x30\xa7\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" for _ in range(1_000_000))
    data = coded([RGB], ImplicitVRLittleEndian)
    start = data.index(b"\x28\x00\x02\x00")
    with pytest.raises(ImageUndecodable, match="nested"):
        image.inspect(data[:start] + deep + data[start:])


def test_millions_of_empty_items_cost_no_time() -> None:
    data = coded([RGB], ImplicitVRLittleEndian)
    start = data.index(b"\x28\x00\x02\x00")
    items = b"\x08\x00\x40\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 3_000_000
    began = time.process_time()
    with pytest.raises(ImageUndecodable, match=f"{elements.MAX_ELEMENTS:,}"):
        image.inspect(data[:start] + items + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00" + data[start:])
    assert time.process_time() - began < 3


def test_a_sequence_of_unknown_vr_is_written_in_implicit_little_endian() -> None:
    data = coded([RGB], ExplicitVRLittleEndian)
    start = data.index(b"\x28\x00\x02\x00US")
    unknown = b"\x09\x00\x10\x11UN\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    unknown += b"\x09\x00\x11\x11\x02\x00\x00\x00ab" + b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    assert np.array_equal(image.decode(data[:start] + unknown + data[start:]), RGB)


def test_an_attribute_that_stands_twice_is_no_header() -> None:
    data = coded([RGB], ExplicitVRLittleEndian)
    rows = b"\x28\x00\x10\x00US\x02\x00"
    start = data.index(rows)
    with pytest.raises(ImageUndecodable, match="twice"):
        image.inspect(data[:start] + rows + b"\x10\x00" + data[start:])


@pytest.mark.parametrize("cut", [1, 9, 100, 2000])
@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless, RLELossless], ids=lambda uid: uid.keyword
)
def test_a_truncated_stream_is_refused_even_where_the_object_is_whole(syntax: str, cut: int) -> None:
    kind = YBR if syntax == JPEGBaseline8Bit else {}
    whole = stream(RGB, syntax)
    if syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        cut += 2  # the end marker alone lacks no pixel
    if syntax == RLELossless:
        cut += 1  # the last byte may be padding
    began = time.process_time()
    with pytest.raises(ImageUndecodable):
        image.prepare(coded([whole[:-cut]], syntax, like=RGB, **kind))
    assert time.process_time() - began < 2


def test_a_jpeg_2000_stream_without_one_of_its_tiles_is_refused() -> None:
    whole = encode(waves(96, 96), "JPEG2000", no_jp2=True, mct=1, tile_size=(48, 48))
    places = [place for place in range(len(whole)) if whole[place : place + 4] == b"\xff\x90\x00\x0a"]
    assert len(places) == 4
    assert np.array_equal(image.decode(coded([whole], JPEG2000Lossless, like=waves(96, 96))), waves(96, 96))
    with pytest.raises(ImageUndecodable):
        image.decode(coded([whole[: places[1]] + whole[places[2] :]], JPEG2000Lossless, like=waves(96, 96)))


def test_a_last_tile_of_unsaid_length_reaches_to_the_end_mark() -> None:
    start = WAVELET.index(b"\xff\x90")
    unsaid = other_size(WAVELET, start + 6, ">I", 0)
    assert np.array_equal(image.decode(coded([unsaid], JPEG2000Lossless, like=RGB)), RGB)
    with pytest.raises(ImageUndecodable):
        image.decode(coded([unsaid[:-600]], JPEG2000Lossless, like=RGB))


def test_a_jpeg_2000_stream_promises_no_more_parts_than_it_has_bytes() -> None:
    style = WAVELET.index(b"\xff\x52")
    with pytest.raises(ImageUndecodable, match="parts"):
        codestream.jpeg_2000(other_size(WAVELET, style + 6, ">H", 65_535))
    tiny = other_size(other_size(WAVELET, 8, ">2I", 6000, 6000), 24, ">2I", 10, 10)
    with pytest.raises(ImageUndecodable, match="tiles"):
        codestream.jpeg_2000(tiny)


def test_damaged_deflated_data_is_refused() -> None:
    data = coded([RGB], DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(data[140:144], "little")
    assert np.array_equal(image.decode(data), RGB)
    with pytest.raises(ImageUndecodable, match="truncated"):
        image.prepare(data[:-100])
    with pytest.raises(ImageUndecodable, match="damaged"):
        image.prepare(data[:start] + b"\x07" + data[start + 1 :])  # a kind of block that there is none of


def test_no_frame_is_larger_than_what_an_image_may_be() -> None:
    assert part10.MAX_BYTES == image.MAX_BYTES
    data = coded([np.zeros((3400, 3400, 3), np.uint8)] * 2, ExplicitVRLittleEndian)
    with pytest.raises(ImageTooLarge, match="Frame 1"):
        next(dicom.frames(data))
    small = dicom.opened(coded([GREY] * 2, ExplicitVRLittleEndian))
    for index in (-1, 2):
        with pytest.raises(IndexError):
            small.frame(index)


def test_a_file_without_its_magic_bytes_is_no_dicom_file() -> None:
    data = bytearray(coded([GREY], ExplicitVRLittleEndian))
    data[128:132] = b"DIC?"
    for way in (dicom.number_of_frames, dicom.opened, dicom.identity):
        with pytest.raises(ImageError):
            way(bytes(data))


def test_a_jpeg_2000_stream_of_very_many_segments_is_refused() -> None:
    comments = (
        WAVELET[: WAVELET.index(b"\xff\x52")] + b"\xff\x64\x00\x02" * 200_001 + WAVELET[WAVELET.index(b"\xff\x52") :]
    )
    with pytest.raises(ImageUndecodable):
        codestream.jpeg_2000(comments)
