"""Pixels out of a DICOM object (part 10 file): single-frame, raw or JPEG-baseline.

Only the header and the pixel data are looked at; no patient attribute is read.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dermserve.errors import ImageUndecodable, UnsupportedImageType

_RAW: Final = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian})
_PREAMBLE: Final = 132  # 128 bytes of preamble and "DICM" (PS3.10 §7.1)
_TRANSFER_SYNTAX: Final = 0x00020010
# Attributes of the image pixel module (PS3.3 C.7.6.3); reading only these keeps the header check cheap.
_JPEG_PHOTOMETRICS: Final = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")
_SAMPLES: Final = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3}
# An Adobe marker that says "no colour transform": without any marker a decoder takes three components for YCbCr.
_ADOBE_RGB: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_GEOMETRY: Final[list[str]] = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"]


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header.

    Raises:
        UnsupportedImageType: no pixels, several frames, or a transfer syntax other than raw little-endian and JPEG baseline.
        ImageUndecodable: the header is damaged.
    """
    _transfer_syntax(data)
    header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_GEOMETRY)
    if "Rows" not in header or "Columns" not in header:
        raise UnsupportedImageType("The DICOM object holds no image.")
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise UnsupportedImageType("Only single-frame DICOM images are accepted.")
    return int(header.Columns), int(header.Rows)


def first_frame(data: bytes) -> tuple[bytes | NDArray[np.uint8], str]:
    """The frame as JPEG bytes where the object holds such, else as uint8 [rows, columns, 3] RGB; its photometric.

    Call `dimensions` first: this trusts the size in the header.
    """
    syntax = _transfer_syntax(data)
    dataset = dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise UnsupportedImageType("The DICOM object holds no pixel data.")
    photometric = str(dataset.get("PhotometricInterpretation"))
    if syntax == JPEGBaseline8Bit:
        if photometric not in _JPEG_PHOTOMETRICS:
            raise UnsupportedImageType(f"JPEG with the photometric interpretation {photometric} is not accepted.")
        jpeg = get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\x00")
        if photometric == "RGB" and b"JFIF" not in jpeg[:32] and b"Adobe" not in jpeg[:4096]:
            jpeg = jpeg[:2] + _ADOBE_RGB + jpeg[2:]
        return jpeg, photometric
    return _to_rgb(dataset, photometric), photometric


def _transfer_syntax(data: bytes) -> str:
    """Read the file meta group alone: a deflated object must be refused before anything inflates it."""
    try:
        meta = read_dataset(
            io.BytesIO(data[_PREAMBLE:]),
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, _vr, _length: tag.group != 2,
        )
        syntax = str(meta[_TRANSFER_SYNTAX].value)
    except Exception as error:
        raise ImageUndecodable("The DICOM file meta information is damaged.") from error
    if syntax not in _RAW and syntax != JPEGBaseline8Bit:
        raise UnsupportedImageType(f"The DICOM transfer syntax {syntax} is not accepted.")
    return syntax


def _to_rgb(dataset: Dataset, photometric: str) -> NDArray[np.uint8]:
    if _SAMPLES.get(photometric) != dataset.SamplesPerPixel or dataset.BitsAllocated not in (8, 16):
        raise UnsupportedImageType(f"DICOM pixels of the kind {photometric} in this form are not accepted.")
    pixels: NDArray[Any] = pixel_array(dataset, index=0)  # YBR becomes RGB here; raises when the data is short
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 16 if pixels.dtype == np.uint16 else 8
    else:
        bits = int(dataset.BitsStored)
    if np.issubdtype(pixels.dtype, np.signedinteger):
        pixels = pixels.astype(np.int64) + (1 << (bits - 1))
    levels = pixels.astype(np.float32) * np.float32(255 / ((1 << bits) - 1))
    if photometric == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2: the smallest value is white
        levels = 255 - levels
    grey_or_rgb = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    if grey_or_rgb.ndim == 2:
        return np.repeat(grey_or_rgb[..., None], 3, axis=2)
    return np.ascontiguousarray(grey_or_rgb)
