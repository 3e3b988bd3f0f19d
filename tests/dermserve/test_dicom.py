"""Every transfer syntax and kind of pixels gives the picture that the same pixels give as PNG or bare JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dermserve import image, sample
from dermserve.errors import UnsupportedImageType
from tests.dermserve.encoded import coded, dicom, encode, stream, swapped_profile, waves

CORPUS = Path(__file__).parent / "corpus"
RAW = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
LOSSLESS = [*RAW, JPEGLSLossless, JPEG2000Lossless, JPEG2000, RLELossless]


def name(uid: object) -> str:
    return str(getattr(uid, "keyword", uid))


def png(pixels: np.ndarray) -> np.ndarray:
    return image.decode(encode(pixels, "PNG"))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=name)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (45, 67)])
def test_lossless_colour_is_the_png(syntax: str, height: int, width: int) -> None:
    pixels = waves(height, width)
    assert np.array_equal(image.decode(coded([pixels], syntax)), png(pixels))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=name)
@pytest.mark.parametrize("bits", [8, 16])
def test_lossless_grey_is_the_png(syntax: str, bits: int) -> None:
    pixels = waves(bits=bits, colour=False)
    assert np.array_equal(image.decode(coded([pixels], syntax)), png(pixels))


@pytest.mark.parametrize(
    ("syntax", "signed"),  # Pillow writes no signed JPEG 2000; a file of pydicom's is read below
    [
        *((one, signed) for one in [*RAW, JPEGLSLossless, RLELossless] for signed in (False, True)),
        (JPEG2000Lossless, False),
    ],
    ids=name,
)
@pytest.mark.parametrize("bits", [10, 12])
def test_bits_that_are_not_stored_do_not_matter(syntax: str, bits: int, signed: bool) -> None:
    levels = waves(bits=bits, colour=False)
    stored = (levels.astype(np.int32) - (1 << (bits - 1)) if signed else levels.astype(np.int32)) & ((1 << bits) - 1)
    pixels = stored.astype(np.uint16)
    if syntax in RAW:
        pixels |= np.uint16(1 << 15)  # a retired overlay
    options = {"bits": bits} if syntax == JPEGLSLossless else {}
    data = coded(
        [pixels], syntax, options=options, BitsStored=16 if syntax == JPEG2000Lossless else bits,
        HighBit=(16 if syntax == JPEG2000Lossless else bits) - 1, PixelRepresentation=int(signed),
    )  # fmt: skip
    expected = levels >> 8 if syntax == JPEG2000Lossless else levels >> (bits - 8)
    assert np.array_equal(image.decode(data)[..., 1], expected)


@pytest.mark.parametrize("syntax", [*RAW, RLELossless], ids=name)
def test_the_upper_bits_of_deep_colour_are_seen(syntax: str) -> None:
    pixels = waves(bits=16)
    assert np.array_equal(image.decode(coded([pixels], syntax)), (pixels >> 8).astype(np.uint8))


@pytest.mark.parametrize("interleave", [0, 1, 2])
def test_jpeg_ls_in_planes_lines_and_pixels(interleave: int) -> None:
    pixels = waves()
    data = coded([pixels], JPEGLSLossless, options={"interleave": interleave})
    assert np.array_equal(image.decode(data), pixels)


def test_lossy_syntaxes_stay_near() -> None:
    pixels = waves()
    near = image.decode(coded([pixels], JPEGLSNearLossless, options={"lossy_error": 3}))
    assert 0 < np.abs(near.astype(int) - pixels).max() <= 3
    wavelet = image.decode(
        coded([pixels], JPEG2000, options={"irreversible": True, "quality_mode": "dB", "quality_layers": [45]})
    )
    assert 0 < np.abs(wavelet.astype(int) - pixels).mean() < 3


@pytest.mark.parametrize("syntax", [HTJ2K, HTJ2KLossless], ids=name)
def test_high_throughput_jpeg_2000(syntax: str) -> None:
    colour, grey = ((CORPUS / f"htj2k-{kind}.jhc").read_bytes() for kind in ("rgb", "grey16"))
    data = coded([colour], syntax, like=waves(), PhotometricInterpretation="YBR_RCT")
    assert np.array_equal(image.decode(data), waves())
    deep = waves(bits=16, colour=False)
    assert np.array_equal(image.decode(coded([grey], syntax, like=deep)), png(deep))


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=name)
def test_lossless_jpeg_with_eight_bits(syntax: str) -> None:
    colour, grey = ((CORPUS / f"lossless-{kind}.jpg").read_bytes() for kind in ("rgb", "grey"))
    assert np.array_equal(image.decode(coded([colour], syntax, like=waves())), waves())
    assert np.array_equal(image.decode(colour), waves()), "and the same bare"
    data = coded([colour], syntax, like=waves(), PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(image.decode(data), np.asarray(Image.fromarray(waves(), "YCbCr").convert("RGB")))
    grey_pixels = waves(colour=False)
    assert np.array_equal(image.decode(coded([grey], syntax, like=grey_pixels)), png(grey_pixels))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (coded([(CORPUS / "extended-12bit.jpg").read_bytes()], JPEGExtended12Bit, like=waves(bits=12, colour=False),
               BitsStored=12, HighBit=11), "12 bits"),
        (coded([(CORPUS / "lossless-grey16.jpg").read_bytes()], JPEGLosslessSV1, like=waves(bits=16, colour=False)),
         "8 bits only"),
        (coded([stream(waves(), JPEG2000)], JPEG2000MC, like=waves()), "transfer syntax"),
        (dicom(waves(), PhotometricInterpretation="YBR_PARTIAL_420"), "photometric"),
    ],
    ids=["12 bits", "lossless 16 bits", "JPEG 2000 part 2", "YBR_PARTIAL_420"],
)  # fmt: skip
def test_what_no_decoder_reads_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(UnsupportedImageType, match=said):
        image.prepare(data)


def test_extended_jpeg_with_eight_bits_is_read() -> None:
    pixels = waves(colour=False)
    assert np.array_equal(image.decode(coded([pixels], JPEGExtended12Bit)), image.decode(encode(pixels)))


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 2}, {"quality": 60, "subsampling": 1}, {"progressive": True}, {"keep_rgb": True}],
    ids=["444", "420", "422", "progressive", "rgb"],
)
def test_a_jpeg_in_dicom_is_the_bare_jpeg(number: int, options: dict[str, object]) -> None:
    pixels = sample.draw(number)
    if number == 5:  # large enough to be decoded at a half
        pixels = np.asarray(Image.fromarray(pixels).resize((1600, 1203)))
    bare = encode(pixels, **options)
    photometric = "RGB" if "keep_rgb" in options else "YBR_FULL_422"
    inside = coded([bare], JPEGBaseline8Bit, like=pixels, PhotometricInterpretation=photometric)
    assert np.array_equal(image.prepare(inside).pixels, image.prepare(bare).pixels)
    assert image.prepare(inside).region == image.prepare(bare).region


@pytest.mark.parametrize("width", [64, 67])
def test_big_endian_words_around_pixels_of_eight_bits(width: int) -> None:
    pixels = waves(45, width)
    data = coded([pixels], ExplicitVRBigEndian)
    start = data.rindex(b"\x7f\xe0\x00\x10OB") + 12
    swapped = np.frombuffer(data[start:], ">u2").astype("<u2").tobytes()  # PS3.5 §7.3: words change their bytes
    words = data[: start - 8] + b"OW" + data[start - 6 : start] + swapped
    assert np.array_equal(image.decode(data), pixels)
    assert np.array_equal(image.decode(words), pixels)


def test_planes_and_pixels_are_the_same() -> None:
    pixels = waves()
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes()
    assert np.array_equal(image.decode(dicom(pixels, PlanarConfiguration=1, PixelData=planes)), pixels)


@pytest.mark.parametrize("syntax", [*RAW, RLELossless, JPEGLSLossless], ids=name)
def test_ybr_full_becomes_rgb(syntax: str) -> None:
    pixels = waves()
    stored = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    found = image.decode(coded([stored], syntax, PhotometricInterpretation="YBR_FULL"))
    assert np.array_equal(found, np.asarray(Image.fromarray(stored, "YCbCr").convert("RGB")))
    assert np.abs(found.astype(int) - pixels).max() <= 3


def test_raw_pixels_with_halved_chroma() -> None:
    stored = np.asarray(Image.fromarray(waves()).convert("YCbCr"))
    pairs = stored.reshape(48, 32, 6)
    halved = np.ascontiguousarray(pairs[..., [0, 3, 1, 2]])
    stored = np.stack([stored[..., 0], *(np.repeat(pairs[..., n], 2, axis=1) for n in (1, 2))], -1)
    data = dicom(waves(), PhotometricInterpretation="YBR_FULL_422", PixelData=halved.tobytes())
    assert np.array_equal(image.decode(data), np.asarray(Image.fromarray(stored, "YCbCr").convert("RGB")))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [*RAW, RLELossless], ids=name)
def test_palettes(syntax: str, bits: int) -> None:
    numbers = waves(colour=False)
    tables = np.stack([np.arange(200)[::-1], np.arange(200) // 2, np.full(200, 7)]).astype(np.uint16)
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    stored = [(table * 257 if bits == 16 else table) for table in tables]
    raw = [
        table.astype(order).tobytes() if bits == 16 else table.astype(np.uint8).view("<u2").astype(order).tobytes()
        for table in stored
    ]
    names = ("Red", "Green", "Blue")
    attributes = {f"{one}PaletteColorLookupTableDescriptor": [200, 20, bits] for one in names}
    attributes |= {f"{one}PaletteColorLookupTableData": table for one, table in zip(names, raw, strict=True)}
    data = coded([numbers], syntax, PhotometricInterpretation="PALETTE COLOR", **attributes)
    expected = tables[:, np.clip(numbers.astype(int) - 20, 0, 199)].transpose(1, 2, 0)
    assert np.array_equal(image.decode(data), expected)


def test_a_window_is_applied_to_deep_grey_only() -> None:
    deep = waves(bits=12, colour=False)
    attributes = {"BitsStored": 12, "HighBit": 11, "WindowCenter": ["1000.5", "5"], "WindowWidth": ["501", "2"]}
    seen = image.decode(dicom(deep, **attributes))[..., 0]
    # PS3.3 C.11.2.1.2.1, with the centre and width of the first pair
    expected = np.rint(np.clip(((deep - 1000.0) / 500 + 0.5) * 255, 0, 255))
    assert np.array_equal(seen, expected)
    shifted = image.decode(dicom(deep, **attributes, RescaleSlope="2", RescaleIntercept="-100"))[..., 0]
    assert np.array_equal(shifted, np.rint(np.clip(((deep * 2.0 - 1100.0) / 500 + 0.5) * 255, 0, 255)))
    inverted = image.decode(dicom(deep, PhotometricInterpretation="MONOCHROME1", **attributes))[..., 0]
    assert np.array_equal(inverted, 255 - expected)
    shallow = waves(colour=False)
    assert np.array_equal(image.decode(dicom(shallow, WindowCenter="30", WindowWidth="20"))[..., 0], shallow)


@pytest.mark.parametrize(
    ("function", "expected"), [("LINEAR_EXACT", [0, 64, 128, 191, 255]), ("SIGMOID", [30, 69, 128, 186, 225])]
)
def test_other_window_functions(function: str, expected: list[int]) -> None:
    deep = np.repeat(np.array([900, 950, 1000, 1050, 1100], np.uint16), 8)[None].repeat(32, 0)
    data = dicom(deep, BitsStored=12, HighBit=11, WindowCenter="1000", WindowWidth="200", VOILUTFunction=function)
    assert np.abs(image.decode(data)[0, ::8, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless], ids=name)
@pytest.mark.parametrize("nested", [False, True])
def test_the_colour_profile_of_the_header_is_applied(syntax: str, nested: bool) -> None:
    pixels = np.full((48, 64, 3), (200, 60, 60), np.uint8)
    path = Dataset()
    path.ICCProfile = swapped_profile()
    attributes = {"OpticalPathSequence": Sequence([path])} if nested else {"ICCProfile": swapped_profile()}
    photometric = {"PhotometricInterpretation": "YBR_FULL_422"} if syntax == JPEGBaseline8Bit else {}
    seen = image.decode(coded([pixels], syntax, **attributes, **photometric))
    assert np.abs(seen.astype(int) - image.decode(encode(pixels, "PNG", icc_profile=swapped_profile()))).max() <= 3
    assert seen[0, 0, 2] > 150 > seen[0, 0, 0], "red and blue are exchanged by this profile"
    srgb = image.decode(coded([pixels], syntax, **photometric))
    assert srgb[0, 0, 0] > 150


@pytest.mark.parametrize(
    "file",
    ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
     "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm"],
)  # fmt: skip
def test_files_of_other_makers_in_many_syntaxes_are_one_picture(file: str) -> None:
    def read(name: str) -> np.ndarray:
        return image.decode(Path(str(get_testdata_file(name, download=False))).read_bytes())

    assert np.array_equal(read(file), read("MR_small.dcm"))


def test_a_whole_jp2_file_in_place_of_a_codestream_is_read() -> None:
    data = coded([encode(waves(), "JPEG2000", mct=1)], JPEG2000Lossless, like=waves())
    assert np.array_equal(image.decode(data), waves())


def test_fill_bytes_before_a_marker_are_no_damage() -> None:
    bare = encode(waves())
    filled = bare[:2] + b"\xff\xff" + bare[2:]
    data = coded([filled], JPEGBaseline8Bit, like=waves(), PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(image.decode(data), image.decode(bare))


def test_a_jpeg_in_three_fragments_is_joined() -> None:
    bare = encode(waves())
    value = encapsulate([bare], fragments_per_frame=3)
    data = dicom(waves(), syntax=JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL", PixelData=value)
    assert np.array_equal(image.decode(data), image.decode(bare))
