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


def first_frame(data: bytes) -> bytes | NDArray[np.uint8]:
    """The frame as JPEG bytes where the object holds such, else as uint8 [rows, columns, 3] RGB.

    Call `dimensions` first: this trusts the size in the header.
    """
    syntax = _transfer_syntax(data)
    dataset = dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise UnsupportedImageType("The DICOM object holds no pixel data.")
    if syntax == JPEGBaseline8Bit:
        return get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\x00")
    return _to_rgb(dataset)


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


def _to_rgb(dataset: Dataset) -> NDArray[np.uint8]:
    pixels: NDArray[Any] = pixel_array(dataset, index=0)  # YBR becomes RGB here; raises when the data is short
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 16 if pixels.dtype == np.uint16 else 8
    else:
        bits = int(dataset.BitsStored)
    if np.issubdtype(pixels.dtype, np.signedinteger):
        pixels = pixels.astype(np.int64) + (1 << (bits - 1))
    levels = pixels.astype(np.float64) * (255 / ((1 << bits) - 1))
    if photometric == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2: the smallest value is white
        levels = 255 - levels
    grey_or_rgb = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    if grey_or_rgb.ndim == 2:
        return np.repeat(grey_or_rgb[..., None], 3, axis=2)
    return np.ascontiguousarray(grey_or_rgb)
