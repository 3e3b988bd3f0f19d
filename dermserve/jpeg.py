"""JPEG to upright sRGB pixels, at full size or at a half, a quarter or an eighth of it.

libjpeg can leave out the high frequencies of each 8×8 block and give 4×4, 2×2 or 1×1 pixels instead. That costs less
than decoding the whole and reducing it, and is close to the mean over each block. Only these three reductions have
vectorised code; those between are slower than the whole.
"""

from __future__ import annotations

import io
import re
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dermserve import colour
from dermserve.errors import ImageUndecodable

DIVISORS: Final = (8, 4, 2)
"""By how much the sides can be divided while decoding."""

_NO_SEGMENTS: Final = frozenset({*range(0xC0), *range(0xD0, 0xDA)})  # T.81 table B.1: nothing before a scan has these
_SEQUENTIAL: Final = (0xC0, 0xC1)
_FILL: Final = re.compile(rb"\xff+")  # a marker's first byte, and any more before it (T.81 B.1.1.2)

MAX_SEGMENTS: Final = 5_000
"""Marker segments before the first scan; a colour profile has 255 at most, and extended metadata some hundreds."""

MAX_FILL: Final = 1_000
"""Fill bytes before a marker."""

MAX_SCANS: Final = 100
"""Scans of a stream; encoders make ten. Each costs a pass over all blocks, however few bytes it has, and 2,646 are valid."""


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, as stored, from the header.

    Raises:
        ImageUndecodable: more segments or scans than the bounds, which would cost many times what the bytes do.
        Exception: whatever the decoder says against the header.
    """
    _require_bounded(data)
    height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    return width, height


def decode(data: bytes, divisor: int = 1, profile: bytes | None = None) -> NDArray[np.uint8]:
    """Decode to uint8 [height / divisor, width / divisor, 3] (rounded up), sRGB, EXIF orientation applied.

    `divisor`: 1 or one of `DIVISORS`. A CMYK or lossless JPEG is always decoded at full size.
    `profile`: an ICC profile that what holds the file names for it, instead of the file's own.

    Raises:
        ImageUndecodable: the file holds a second header that contradicts the first.
        Exception: whatever a decoder says against a damaged or short stream.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:  # lazy: reads the markers, not the pixels
        width, height = dimensions(data)
        if image.size != (width, height):  # what is decoded must be what was checked
            raise ImageUndecodable("The header contradicts itself.")
        if image.mode == "CMYK":  # also YCCK; libjpeg cannot turn these into RGB
            simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)  # only to refuse damage, which Pillow fills in
            return np.asarray(colour.upright(image))
        profile, turn = profile or image.info.get("icc_profile"), colour.orientation(image)
    pixels = _decode(data, -(-width // divisor), -(-height // divisor)) if divisor > 1 else _decode(data)
    if profile is None and turn is None:
        return pixels
    return np.asarray(colour.transposed(colour.to_srgb(Image.fromarray(pixels), profile), turn))


def _require_bounded(data: bytes) -> None:
    """Pillow reads the segments, and fill and stray bytes one by one, in Python; libjpeg calls the stray ones damage."""
    place, sequential = 2, 0
    for _ in range(MAX_SEGMENTS):
        filled = _FILL.match(data, place)
        if filled is None or len(data) < filled.end() + 3 or data[filled.end()] in _NO_SEGMENTS:
            raise ImageUndecodable("The JPEG data is truncated or corrupt.")
        if filled.end() - place > MAX_FILL:
            break
        place = filled.end() - 1
        if data[place + 1] in _SEQUENTIAL:
            sequential = data[place + 9]  # components of the frame (T.81 B.2.2)
        if data[place + 1] == 0xDA:
            # A first scan of all components (B.2.3) is the only one that libjpeg reads, unless the frame is progressive.
            if data[place + 4] != sequential and data.count(b"\xff\xda", place) > MAX_SCANS:
                break
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ImageUndecodable("The JPEG is in more parts than any encoder makes.")


def _decode(data: bytes, width: int = 0, height: int = 0) -> NDArray[np.uint8]:
    """Decode to RGB at the smallest scale that is at least `width` by `height`, or at full size."""
    # strict: libjpeg only warns about a damaged or short stream and fills in grey; a lesion filled in grey is no result.
    options: dict[str, Any] = {"colorspace": "RGB", "strict": True}
    if width:
        try:
            reduced: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, min_width=width, min_height=height, **options)
            return reduced
        except ValueError:
            pass  # Damaged, or lossless, which knows no blocks: what holds at full size decides.
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **options)
    return pixels
