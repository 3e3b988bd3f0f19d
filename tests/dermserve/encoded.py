"""Makers of encoded test images, good and bad; everything is generated."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

DERMOSCOPIC_PHOTOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.7"


def corners(height: int = 120, width: int = 160) -> NDArray[np.uint8]:
    """Four flat quarters (red, green / blue, white): orientation and colour errors show at once."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 40, 40)
    pixels[: height // 2, width // 2 :] = (40, 200, 40)
    pixels[height // 2 :, : width // 2] = (40, 40, 200)
    pixels[height // 2 :, width // 2 :] = (220, 220, 220)
    return pixels


def encode(pixels: NDArray[Any], kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0} | options
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, exif=exif)


def png_bomb(side: int) -> bytes:
    """A small PNG whose header promises `side`×`side` pixels of RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    squeeze = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    body = b"".join(squeeze.compress(row) for _ in range(min(side, 200))) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def dicom(pixels: NDArray[Any], *, jpeg: bool = False, syntax: str | None = None, **attributes: Any) -> bytes:
    """A DICOM part 10 file around `pixels` (uint8 or uint16; [h, w] or [h, w, 3]); attributes override."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DERMOSCOPIC_PHOTOGRAPHY
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax or (JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian)
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName = "Nobody^Real"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    if jpeg:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.PixelData = encapsulate([encode(pixels, subsampling=1)])
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png_of_rows(pixels: NDArray[np.uint8], rows: int) -> bytes:
    """A PNG whose header promises all rows and whose data, itself complete, holds only the first `rows`."""
    height, width = pixels.shape[:2]
    raw = b"".join(b"\x00" + row.tobytes() for row in pixels[:rows])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def swapped_profile() -> bytes:
    """An ICC profile like sRGB, but with red and blue exchanged: whether it was applied shows at once."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile[:24] + bytes(12) + profile[36:]  # when it was made
    for old, new in ((b"rXYZ", b"----"), (b"bXYZ", b"rXYZ"), (b"----", b"bXYZ")):
        profile = profile.replace(old, new, 1)
    return profile.replace("sRGB".encode("utf-16-be"), "Test".encode("utf-16-be"))


def waves(height: int = 48, width: int = 64, *, bits: int = 8, colour: bool = True) -> NDArray[Any]:
    """Smooth slopes with a noisy patch, uint8 or uint16, over the whole range of `bits`: no two pixels in a row are equal."""
    rows, columns = np.mgrid[:height, :width] / (height + width)
    top = (1 << bits) - 1
    planes = [(np.sin(7 * rows * k + 11 * columns) + 1) / 2 * top for k in ((1, 2, 3) if colour else (1,))]
    pixels = np.stack(planes, -1)
    pixels[10:20, 10:30] = np.random.default_rng(5).integers(0, top + 1, pixels[10:20, 10:30].shape)
    pixels = np.rint(pixels).astype(np.uint8 if bits <= 8 else np.uint16)
    return pixels if colour else pixels[..., 0]


def stream(pixels: NDArray[Any], syntax: str, **options: Any) -> bytes:
    """A frame in a compressed transfer syntax, without loss where that can be."""
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return encode(pixels, **options)
    if syntax in (JPEG2000, JPEG2000Lossless):
        return encode(pixels, "JPEG2000", no_jp2=True, mct=pixels.ndim == 3, **options)
    if syntax in (JPEGLSLossless, JPEGLSNearLossless):
        import jpeg_ls  # other rooms' tests, which need none of this, import this module, too

        bits = options.pop("bits", pixels.dtype.itemsize * 8)
        rows, columns = pixels.shape[:2]
        planes = 3 if pixels.ndim == 3 else 1
        interleave = options.pop("interleave", 2)
        if planes == 3 and interleave == 0:
            pixels = np.moveaxis(pixels, -1, 0)
        return bytes(
            jpeg_ls.encode_buffer(
                np.ascontiguousarray(pixels).tobytes(),
                rows,
                columns,
                planes,
                bits,
                interleave_mode=interleave,
                **options,
            )
        )
    assert syntax == RLELossless
    return runs(pixels)


def runs(pixels: NDArray[Any]) -> bytes:
    """PS3.5 annex G: a segment for each byte of each sample, the most significant first; runs and literals of a row each."""
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    segments = []
    for sample in range(planes.shape[2]):
        swapped = planes[..., sample].astype(planes.dtype.newbyteorder(">"), order="C")
        for byte in np.moveaxis(swapped.view(np.uint8).reshape(*swapped.shape, planes.dtype.itemsize), -1, 0):
            segment = b"".join(_packed(row.tobytes()) for row in byte)
            segments.append(segment + bytes(len(segment) % 2))
    offsets = np.cumsum([64, *(len(segment) for segment in segments)])[:-1]
    header = struct.pack("<16I", len(segments), *offsets, *([0] * (15 - len(segments))))
    return header + b"".join(segments)


def _packed(row: bytes) -> bytes:
    found, place = bytearray(), 0
    while place < len(row):
        run = 1
        while run < 128 and row[place : place + run + 1] == row[place : place + 1] * (run + 1):
            run += 1
        if run > 1:
            found += bytes([257 - run, row[place]])
            place += run
        else:
            found += bytes([0, row[place]])
            place += 1
    return bytes(found)


def coded(frames: list[NDArray[Any]], syntax: str, *, table: bool = True, **attributes: Any) -> bytes:
    """A DICOM file of one or more frames in any transfer syntax; `frames` may be streams already, if `like` gives the shape."""
    like = attributes.pop("like", frames[0])
    options = attributes.pop("options", {})
    if syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        value = b"".join(frame.tobytes() for frame in frames)
        if syntax == ExplicitVRBigEndian and like.dtype.itemsize == 2:
            value = b"".join(frame.byteswap().tobytes() for frame in frames)
        value += bytes(len(value) % 2)
    else:
        value = encapsulate(
            [one if isinstance(one, bytes) else stream(one, syntax, **options) for one in frames], has_bot=table
        )
    if len(frames) > 1:
        attributes = {"NumberOfFrames": len(frames)} | attributes
    if syntax in (JPEG2000, JPEG2000Lossless) and like.ndim == 3:
        attributes = {"PhotometricInterpretation": "YBR_RCT" if syntax == JPEG2000Lossless else "YBR_ICT"} | attributes
    return dicom(like, syntax=syntax, **({"PixelData": value} | attributes))
