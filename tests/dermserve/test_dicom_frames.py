"""Objects with several frames: each frame travels alone, gives its own pixels and takes nothing of the patient along."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import iter_pixels
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dermserve import dicom, image
from dermserve.errors import ImageTooLarge, ImageUndecodable
from tests.dermserve.encoded import coded, encode, stream, swapped_profile, waves

SYNTAXES = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit,
    JPEGLSLossless, JPEG2000Lossless, RLELossless,
]  # fmt: skip


def different(count: int, **options: object) -> list[np.ndarray]:
    """Pictures that differ, with an odd number of bytes each where they have 8 bits."""
    return [np.ascontiguousarray(np.roll(waves(45, 67, **options), 9 * n, axis=1)) for n in range(count)]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("options", [{}, {"colour": False}, {"colour": False, "bits": 16}], ids=["rgb", "grey", "deep"])
def test_each_frame_is_an_image_of_its_own(syntax: str, options: dict[str, object]) -> None:
    if syntax == JPEGBaseline8Bit and "bits" in options:
        options = {"colour": False}
    pictures = different(3, **options)
    kind = {"PhotometricInterpretation": "YBR_FULL_422"} if syntax == JPEGBaseline8Bit and not options else {}
    data = coded(pictures, syntax, **kind)
    assert dicom.number_of_frames(data) == 3
    single = [image.decode(coded([one], syntax, **kind)) for one in pictures]
    assert not np.array_equal(single[0], single[1])
    opened = dicom.opened(data)
    for index in (2, 0, 1):
        frame = opened.frame(index)
        seen = image.decode(frame.data) if isinstance(frame, dicom.Jpeg) else frame
        assert np.array_equal(seen, single[index])
    travelling = list(dicom.frames(data))
    assert [np.array_equal(image.decode(one), alone) for one, alone in zip(travelling, single, strict=True)] == [
        True
    ] * 3
    assert [np.array_equal(image.prepare(one).pixels, image.prepare(coded([alone], syntax, **kind)).pixels)
            for one, alone in zip(travelling, pictures, strict=True)] == [True] * 3  # fmt: skip
    assert all(b"Nobody" not in one for one in travelling)


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_frames_in_several_fragments_are_found_with_and_without_tables(syntax: str, table: str) -> None:
    pictures = different(3)
    streams = [stream(one, syntax) for one in pictures]
    kind = {"PhotometricInterpretation": "YBR_FULL"} if syntax == JPEGBaseline8Bit else {}
    if table == "extended":  # PS3.3 C.7.6.3.1.8 allows one fragment a frame
        value, offsets, lengths = encapsulate_extended(streams)
        kind |= {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    else:
        value = encapsulate(streams, fragments_per_frame=4, has_bot=table == "basic")
    data = coded(streams, syntax, like=pictures[0], PixelData=value, **kind)
    for one, bare in zip(dicom.frames(data), streams, strict=True):
        assert np.array_equal(image.decode(one), image.decode(coded([bare], syntax, like=pictures[0], **kind)))


def test_what_tells_how_pixels_are_seen_travels_with_each_frame() -> None:
    deep = [one.astype(np.uint16) for one in different(2, bits=12, colour=False)]
    attributes = {
        "BitsStored": 12, "HighBit": 11, "WindowCenter": "1000.25", "WindowWidth": "1800", "RescaleSlope": "1.5",
        "RescaleIntercept": "-3", "PhotometricInterpretation": "MONOCHROME1",
    }  # fmt: skip
    for syntax in (ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless):
        for one, alone in zip(dicom.frames(coded(deep, syntax, **attributes)), deep, strict=True):
            assert np.array_equal(image.decode(one), image.decode(coded([alone], syntax, **attributes)))
    path = Dataset()
    path.ICCProfile = swapped_profile()
    profile = {"OpticalPathSequence": Sequence([path]), "PhotometricInterpretation": "YBR_FULL_422"}
    red = [np.full((40, 40, 3), (200, 60, level), np.uint8) for level in (20, 90)]
    for one in dicom.frames(coded(red, JPEGBaseline8Bit, **profile)):
        seen = image.decode(one)
        assert seen[0, 0, 2] > 150 > seen[0, 0, 0]


def test_palettes_travel_with_each_frame() -> None:
    names = ("Red", "Green", "Blue")
    attributes = {f"{one}PaletteColorLookupTableDescriptor": [256, 0, 16] for one in names}
    attributes |= {
        f"{one}PaletteColorLookupTableData": np.roll(np.arange(256, dtype="<u2") * 257, n).tobytes()
        for n, one in enumerate(names)
    }
    pictures = different(2, colour=False)
    data = coded(pictures, ExplicitVRLittleEndian, PhotometricInterpretation="PALETTE COLOR", **attributes)
    for one, numbers in zip(dicom.frames(data), pictures, strict=True):
        expected = np.stack([np.roll(np.arange(256), n)[numbers] for n in range(3)], -1)
        assert np.array_equal(image.decode(one), expected)


def test_a_damaged_frame_spoils_no_other() -> None:
    streams = [encode(one) for one in different(3)]
    streams[1] = streams[1][: len(streams[1]) // 2]
    data = coded(streams, JPEGBaseline8Bit, like=waves(45, 67), PhotometricInterpretation="YBR_FULL")
    first, second, third = dicom.frames(data)
    assert np.array_equal(image.decode(first), image.decode(streams[0]))
    assert np.array_equal(image.decode(third), image.decode(streams[2]))
    with pytest.raises(ImageUndecodable):
        image.decode(second)


def test_one_frame_of_many_is_neither_decoded_with_the_others_nor_copied_with_them() -> None:
    pictures = [waves(500, 500)] * 40
    data = coded(pictures, ExplicitVRLittleEndian)
    assert len(data) > 30_000_000
    tracemalloc.start()
    try:
        sizes = [len(one) for one in dicom.frames(data)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(750_000 < size < 751_000 for size in sizes)
    assert peak < 5_000_000


def test_thirty_jpeg_frames_of_another_maker() -> None:
    data = Path(str(get_testdata_file("examples_ybr_color.dcm", download=False))).read_bytes()
    pictures = [image.decode(one) for one in dicom.frames(data)]
    assert len(pictures) == dicom.number_of_frames(data) == 30
    assert {one.shape for one in pictures} == {(240, 320, 3)}
    for seen, theirs in zip(pictures, iter_pixels(io.BytesIO(data)), strict=True):  # by pydicom and Pillow
        assert np.abs(seen.astype(int) - theirs).mean() < 1


@pytest.mark.parametrize(
    ("said", "error"),
    [("1001", ImageTooLarge), ("99999999999", ImageTooLarge), ("0", ImageUndecodable), ("-3", ImageUndecodable),
     ("4", ImageUndecodable), ("2", ImageUndecodable)],
)  # fmt: skip
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless, RLELossless], ids=lambda uid: uid.keyword)
def test_a_number_of_frames_that_is_not_true_is_refused(syntax: str, said: str, error: type[Exception]) -> None:
    data = coded(different(3), syntax, NumberOfFrames="333333333333")
    assert data.count(b"333333333333") == 1
    data = data.replace(b"333333333333", said.encode().ljust(12))
    with pytest.raises(error):
        list(dicom.frames(data))


def test_frames_that_the_header_does_not_know_are_not_lost_in_silence() -> None:
    for syntax in (ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless, RLELossless):
        kind = {"PhotometricInterpretation": "YBR_FULL"} if syntax == JPEGBaseline8Bit else {}
        data = coded(different(2), syntax, table=False, NumberOfFrames=1, **kind)
        with pytest.raises(ImageUndecodable):
            image.prepare(data)


def test_a_black_frame_is_not_taken_for_padding() -> None:
    pictures = [waves(), np.zeros_like(waves())]
    with pytest.raises(ImageUndecodable):
        image.prepare(coded(pictures, ExplicitVRLittleEndian, NumberOfFrames=1))
    padded = waves().tobytes() + bytes(12)
    assert np.array_equal(image.decode(coded([waves()], ExplicitVRLittleEndian, PixelData=padded)), waves())


@pytest.mark.parametrize("wrong", [(0, 8), (4, 600), (0, 0), (0, 2**32 - 2), (600, 0)])
def test_an_offset_table_that_points_elsewhere_is_refused(wrong: tuple[int, int]) -> None:
    streams = [encode(one) for one in different(2)]
    value = bytearray(encapsulate(streams, fragments_per_frame=2))
    value[8:16] = struct.pack("<2I", *wrong)
    data = coded(
        streams, JPEGBaseline8Bit, like=waves(45, 67), PixelData=bytes(value), PhotometricInterpretation="YBR_FULL"
    )
    with pytest.raises(ImageUndecodable):
        list(dicom.frames(data))


def test_all_frames_together_are_bounded_too() -> None:
    data = coded(
        [np.zeros((32, 32), np.uint8)] * 2, ExplicitVRLittleEndian, Rows=10_000, Columns=10_000, NumberOfFrames=6
    )
    with pytest.raises(ImageTooLarge, match="600 megapixels"):
        dicom.number_of_frames(data)
