"""Stored values to uint8 RGB, as the DICOM header says they are meant.

- Colour: eight bits as they are; of more, the upper eight, as `colour` does with PNG.
- Grey with up to eight bits stored: the whole range, as any other picture; a JPEG in DICOM is the bare JPEG.
- Grey with more: the rescaling (PS3.3 C.11.1) and then the first window (C.11.2.1.2) where the header has one, else the
  upper eight bits of the stored range. VOI tables and windows of single frames are not applied.
- MONOCHROME1 is inverted at the end (C.7.6.3.1.2: its smallest value is white).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermserve import colour
from dermserve.dicom.decoders import Values
from dermserve.dicom.pixel_module import Pixels, Window
from dermserve.errors import UnsupportedImageType

_DEEP: Final = 8


def to_rgb(values: Values, header: Pixels) -> NDArray[np.uint8]:
    """Uint8 [rows, columns, 3], sRGB by the profile of the header. `values`: as `decoders` and raw frames give them.

    Raises:
        UnsupportedImageType: YBR with more than eight bits.
    """
    if header.photometric == "PALETTE COLOR":
        pixels = _coloured(_numbers(values, header), header)
    elif header.grey:
        shades = _shades(header)[_stored(values, header)]
        return np.repeat(shades[..., None], 3, axis=2)
    else:
        if header.photometric.startswith("YBR_FULL") and header.allocated != 8:
            raise UnsupportedImageType("YBR pixels with more than 8 bits are not accepted.")
        pixels = values if values.dtype == np.uint8 else _upper(_stored(values, header), header.stored)
        pixels = np.ascontiguousarray(pixels)
        if header.photometric.startswith("YBR_FULL"):
            pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
    if header.profile is None:
        return pixels
    return np.asarray(colour.to_srgb(Image.fromarray(pixels), header.profile))


def _stored(values: Values, header: Pixels) -> Values:
    """The bits stored; those above them may hold retired overlays (PS3.5 §8.1.2)."""
    kept: Values = values & ((1 << header.stored) - 1)
    return kept


def _numbers(values: Values, header: Pixels) -> NDArray[np.int32]:
    """Stored values with their sign."""
    numbers = _stored(values, header).astype(np.int32)
    if header.signed:
        numbers -= (numbers >> (header.stored - 1)) << header.stored
    return numbers


def _upper(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (values >> (bits - 8)).astype(np.uint8)


def _coloured(numbers: NDArray[np.int32], header: Pixels) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.5: values before the first entry take it, those past the last one take that."""
    return np.stack(
        [table.entries[np.clip(numbers - table.first, 0, len(table.entries) - 1)] for table in header.palette], axis=-1
    )


def _shades(header: Pixels) -> NDArray[np.uint8]:
    """The grey level of each stored value, uint8 [2 ** bits stored], two's complement values at their bit pattern."""
    bits = header.stored
    patterns = np.arange(1 << bits, dtype=np.int64)
    numbers = patterns - ((patterns >> (bits - 1)) << bits) if header.signed else patterns
    if bits > _DEEP and header.window is not None:
        levels = np.rint(_windowed(numbers * header.slope + header.intercept, header.window)).astype(np.uint8)
    else:
        ordered = numbers + (1 << (bits - 1)) if header.signed else numbers
        levels = _upper(ordered, bits) if bits >= 8 else np.rint(ordered * (255 / ((1 << bits) - 1))).astype(np.uint8)
    return np.invert(levels) if header.photometric == "MONOCHROME1" else levels


def _windowed(values: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """0…255 (PS3.3 C.11.2.1.2.1 and C.11.2.1.3.1–2)."""
    center, width = window.center, window.width
    if window.function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if window.function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(values <= center, 0.0, 255.0)
    return np.clip(((values - center) / width + 0.5) * 255, 0, 255)
