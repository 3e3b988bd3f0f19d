from __future__ import annotations

import io
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGBaseline8Bit

from dermserve import crop, image, png
from dermserve.errors import ImageEmpty, ImageTooLarge, ImageTooSmall, ImageUndecodable, UnsupportedImageType
from tests.dermserve.encoded import corners, dicom, encode, oriented, png_bomb, png_of_rows, swapped_profile

QUARTERS = {
    "top left": ((0.25, 0.25), (200, 40, 40)),
    "top right": ((0.25, 0.75), (40, 200, 40)),
    "bottom left": ((0.75, 0.25), (40, 40, 200)),
    "bottom right": ((0.75, 0.75), (220, 220, 220)),
}


def assert_upright(pixels: np.ndarray, tolerance: int = 8) -> None:
    for name, ((row, column), colour) in QUARTERS.items():
        found = pixels[int(row * pixels.shape[0]), int(column * pixels.shape[1])]
        assert np.abs(found.astype(int) - colour).max() <= tolerance, (name, found)


@pytest.mark.parametrize(
    "data",
    [
        encode(corners()),
        encode(corners(), subsampling=2),
        encode(corners(), progressive=True),
        encode(corners(), "PNG"),
        encode(Image.fromarray(corners()).convert("RGBA"), "PNG"),
        encode(Image.fromarray(corners()).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        encode(Image.fromarray(corners()).convert("CMYK"), "JPEG"),
        dicom(corners()),
        dicom(corners(), jpeg=True),
    ],
    ids=["jpeg", "jpeg420", "progressive", "png", "rgba", "palette", "cmyk", "dicom-raw", "dicom-jpeg"],
)
def test_every_accepted_kind_gives_the_same_picture(data: bytes) -> None:
    prepared = image.prepare(data)
    assert prepared.pixels.shape == (300, 300, 3)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.region == image.WHOLE
    assert_upright(prepared.pixels, tolerance=12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    stored = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: np.transpose(p, (1, 0, 2)),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(np.transpose(p, (1, 0, 2)), 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation](corners())
    assert_upright(image.decode(oriented(np.ascontiguousarray(stored), orientation)))


def test_a_colour_profile_is_applied_and_srgb_is_left_alone() -> None:
    grey = np.full((64, 64, 3), (200, 60, 60), np.uint8)
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert np.array_equal(
        image.decode(encode(grey, "PNG")), image.decode(encode(grey, "PNG", icc_profile=srgb.tobytes()))
    )
    swapped = image.decode(encode(grey, "PNG", icc_profile=swapped_profile()))
    assert swapped[0, 0, 2] > 150 > swapped[0, 0, 0], "red and blue are exchanged by this profile"
    assert np.abs(image.decode(encode(grey, icc_profile=swapped_profile())).astype(int) - swapped).max() <= 3
    # A profile for another colour model cannot apply to RGB pixels; like every viewer, take them as sRGB.
    assert np.array_equal(
        image.decode(encode(grey, "PNG", icc_profile=linear.tobytes())), image.decode(encode(grey, "PNG"))
    )
    assert np.array_equal(image.decode(encode(grey, "PNG", icc_profile=b"nonsense")), image.decode(encode(grey, "PNG")))


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 100 * 100).reshape(100, 100).astype(np.uint16)
    decoded = image.decode(encode(Image.fromarray(ramp), "PNG"))
    assert np.abs(decoded[..., 0].astype(int) - (ramp >> 8)).max() <= 1


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", ImageEmpty),
        (b"just some text, sent as an image", UnsupportedImageType),
        (b"GIF89a" + bytes(200), UnsupportedImageType),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedImageType),
        (encode(corners())[:1500], ImageUndecodable),
        (encode(corners(), "PNG")[:-60], ImageUndecodable),
        (encode(corners())[:40], ImageUndecodable),
        (b"\xff\xd8\xff", ImageUndecodable),
        (b"\x89PNG\r\n\x1a\n", ImageUndecodable),
        (bytes(128) + b"DICM", ImageUndecodable),
        (dicom(corners())[:-2000], ImageUndecodable),
        (dicom(corners(), NumberOfFrames=2), UnsupportedImageType),
        (dicom(corners(), jpeg=True, syntax=MPEG2MPML), UnsupportedImageType),
        (dicom(corners(), jpeg=True, syntax=JPEG2000Lossless), UnsupportedImageType),
        (encode(corners(20, 20)), ImageTooSmall),
        (png_bomb(40_000), ImageTooLarge),
        (encode(np.zeros((40, 20_001, 3), np.uint8), "PNG"), ImageTooLarge),
        (b"\xff\xd8\xff" + bytes(image.MAX_BYTES), ImageTooLarge),
        (dicom(corners(), Rows=60_000, Columns=60_000), ImageTooLarge),
    ],
    ids=[
        "empty", "text", "gif", "svg", "jpeg-cut", "png-cut", "jpeg-header-only", "jpeg-3-bytes", "png-8-bytes",
        "dicom-header-only", "dicom-cut", "dicom-frames", "dicom-mpeg2", "dicom-jpeg2000", "small", "bomb", "long", "bytes",
        "dicom-bomb",
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        image.prepare(data)
    assert type(caught.value) is error
    assert "/" not in caught.value.detail or "JPEG" in caught.value.detail


def test_a_jpeg_damaged_in_the_middle_is_refused_and_not_filled_in_with_grey() -> None:
    rng = np.random.default_rng(0)
    data = bytearray(encode(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), subsampling=2))
    middle = len(data) // 2
    data[middle : middle + 400] = b"\xff\xd9" * 200  # an early end of image
    with pytest.raises(ImageUndecodable):
        image.prepare(bytes(data))


def test_a_bomb_is_refused_before_it_costs_time_or_memory() -> None:
    bomb = png_bomb(40_000)
    start = time.perf_counter()
    with pytest.raises(ImageTooLarge):
        image.prepare(bomb)
    assert time.perf_counter() - start < 0.5


def round_view(height: int = 450, width: int = 600) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 2) ** 2
    pixels = np.full((height, width, 3), 3, np.uint8)
    pixels[inside] = (210, 170, 150)
    return pixels


def test_the_frame_of_a_round_view_is_cropped() -> None:
    prepared = image.fit(round_view())
    left, top, right, bottom = prepared.region
    assert 0.1 < left < 0.25
    assert 0.75 < right < 0.9
    assert 0.02 < top < 0.12
    assert 0.88 < bottom < 0.98
    black = (prepared.pixels.max(axis=2) < 30).mean()
    assert black < 0.12, "the frame was 41 % of the picture"


def test_black_bars_are_cropped_to_the_pixel_block() -> None:
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[100:300] = (200, 160, 140)
    left, top, right, bottom = image.fit(pixels).region
    assert (left, right) == (0, 1)
    assert top == pytest.approx(0.25, abs=0.01)
    assert bottom == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("level", [0, 10, 120, 255])
def test_a_picture_without_a_frame_is_kept_whole(level: int) -> None:
    assert image.fit(np.full((300, 400, 3), level, np.uint8)).region == image.WHOLE


def test_a_dark_lesion_on_skin_is_not_taken_for_a_frame() -> None:
    pixels = np.full((450, 600, 3), (205, 165, 150), np.uint8)
    pixels[100:350, 150:450] = (15, 10, 10)
    assert image.fit(pixels).region == image.WHOLE


def test_the_header_alone_gives_format_and_stored_size() -> None:
    assert image.inspect(oriented(corners(100, 200), 6)) == image.Header("jpeg", 200, 100)
    assert image.inspect(encode(corners(50, 70), "PNG")) == image.Header("png", 70, 50)
    assert image.inspect(dicom(corners(64, 80))) == image.Header("dicom", 80, 64)


def test_preprocessing_hash_is_the_same_in_another_process_and_changes_with_the_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, "-c", "from dermserve.image import preprocessing_hash as h; print(h())"]
    before = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert image.preprocessing_hash() == before
    monkeypatch.setattr(crop, "_LEAST_KEPT", 1.0)
    assert image.preprocessing_hash.__wrapped__() != before


def test_metadata_never_reaches_the_tensor() -> None:
    plain, tagged = encode(corners()), io.BytesIO()
    exif = Image.Exif()
    exif[0x9286] = "a comment about a patient"
    Image.open(io.BytesIO(plain)).save(tagged, "JPEG", exif=exif, quality="keep")
    assert np.array_equal(image.prepare(plain).pixels, image.prepare(tagged.getvalue()).pixels)


def test_real_images_are_all_accepted(shared_data) -> None:
    files = sorted((shared_data / "load").glob("*.jpg"))[:40] + sorted((shared_data / "isic2020/train").glob("*"))[:40]
    assert len(files) == 80
    for file in files:
        assert image.prepare(file.read_bytes()).pixels.std() > 5, file


def test_a_second_png_header_cannot_smuggle_more_pixels_past_the_check() -> None:
    small, large = png_of_rows(corners(100, 100), 100), png_of_rows(corners(200, 200), 200)
    smuggled = small[:33] + large[8:]  # the signature and a small IHDR, then a whole larger picture
    assert image.inspect(smuggled).width == 100
    with pytest.raises(ImageUndecodable):
        image.prepare(smuggled)


def test_a_png_with_rows_missing_is_refused_and_not_filled_in_with_black() -> None:
    assert_upright(image.decode(png_of_rows(corners(), 120)))
    with pytest.raises(ImageUndecodable):
        image.decode(png_of_rows(corners(), 119))


@pytest.mark.parametrize("lost", [1, 5, 12, 20])
def test_a_png_without_its_very_end_is_refused(lost: int) -> None:
    with pytest.raises(ImageUndecodable):
        image.decode(encode(corners(), "PNG")[:-lost])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_whole_pngs_of_every_kind_are_accepted(mode: str, interlaced: bool) -> None:
    data = encode(Image.fromarray(corners(67, 91)).convert(mode), "PNG")
    if interlaced:  # Pillow writes none; these bytes need not decode, only pass the count of rows
        raw = bytes(sum(rows * (1 + columns * 3) for rows, columns in png._passes(91, 67, True) if columns))
        chunks = [(b"IHDR", (91).to_bytes(4, "big") + (67).to_bytes(4, "big") + bytes([8, 2, 0, 0, 1]))]
        chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
            for kind, body in chunks
        )
    assert image.decode(data).shape == (67, 91, 3)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cmyk_jpeg_cut_and_closed_again_is_refused(share: float) -> None:
    data = encode(Image.fromarray(corners()).convert("CMYK"), "JPEG")
    with pytest.raises(ImageUndecodable):
        image.decode(data[: int(len(data) * share)] + b"\xff\xd9")


def test_dicom_says_what_the_jpeg_inside_means() -> None:
    grey = np.asarray(Image.fromarray(corners()).convert("L"))
    negative = encode(np.ascontiguousarray(255 - grey))
    shown = image.decode(
        dicom(grey, syntax=JPEGBaseline8Bit, PhotometricInterpretation="MONOCHROME1", PixelData=encapsulate([negative]))
    )
    assert np.array_equal(shown, 255 - image.decode(negative))
    # Three components stored as they are, and no marker that says so.
    plain = Image.fromarray(corners())
    bare = bytearray(encode(Image.merge("YCbCr", plain.split()), "JPEG"))
    start = bare.index(b"JFIF") - 4
    del bare[start : start + 2 + int.from_bytes(bare[start + 2 : start + 4], "big")]
    data = dicom(corners(), jpeg=True, PhotometricInterpretation="RGB", PixelData=encapsulate([bytes(bare)]))
    assert_upright(image.decode(data), tolerance=12)
