"""Bytes to the one tensor that every part of dermserve sees: 300×300×3, uint8, sRGB.

Training, calibration, export parity, Triton's models and the command line all call `prepare`. What it does is
pinned by `preprocessing_hash`, which the model card holds and a server checks before it loads the model.

Order of work, cheapest refusal first: size in bytes → magic bytes → dimensions from the header → decode → colour
profile to sRGB → EXIF orientation → frame crop → resize. Nothing is decoded before its dimensions are known.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermserve import artifacts, colour, dicom, jpeg, png
from dermserve.crop import Box, frame
from dermserve.errors import (
    ImageEmpty,
    ImageError,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    PreprocessingMismatch,
    UnsupportedImageType,
)

SIDE: Final = 300
"""Height and width of the prepared tensor in pixels: EfficientNet-B3's own training resolution."""

LEAST_SIDE: Final = 2 * SIDE
"""What the kept region of a JPEG has at least on each side, in pixels, where it was decoded at a reduced size."""

MAX_BYTES: Final = 32 * 1024 * 1024
MAX_PIXELS: Final = 50_000_000
MAX_SIDE: Final = 20_000
MIN_SIDE: Final = 32

Format = Literal["jpeg", "png", "dicom"]
Pixels = NDArray[np.uint8]

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class Region(NamedTuple):
    """The part of the upright image that was kept, as fractions of its width and height (0…1)."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE: Final = Region(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Header:
    """What the header alone tells. `width` and `height` are in pixels, as stored (before EXIF orientation)."""

    format: Format
    width: int
    height: int


class Prepared(NamedTuple):
    """`pixels`: uint8 [300, 300, 3], sRGB, row-major. `region`: what the frame crop kept (the map's frame, too)."""

    pixels: Pixels
    region: Region


def inspect(data: bytes) -> Header:
    """Check size, kind and dimensions from the header, in microseconds and without decoding a pixel.

    Raises:
        ImageEmpty, ImageTooLarge, ImageTooSmall, UnsupportedImageType, ImageUndecodable: see `dermserve.errors`.
    """
    kind = _sniff(data)
    try:
        width, height = _DIMENSIONS[kind](data)
    except ImageError:
        raise
    except Exception as error:
        raise ImageUndecodable(f"The {kind.upper()} header is damaged.") from error
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageTooLarge(
            f"The image is {width}×{height} pixels; at most {MAX_PIXELS // 1_000_000} megapixels "
            f"and {MAX_SIDE:,} pixels a side are accepted."
        )
    if width < MIN_SIDE or height < MIN_SIDE:
        raise ImageTooSmall(f"The image is {width}×{height} pixels; at least {MIN_SIDE} pixels a side are needed.")
    return Header(kind, width, height)


def decode(data: bytes) -> Pixels:
    """Decode to uint8 [height, width, 3] in sRGB, upright (EXIF orientation applied).

    Raises:
        ImageError: one of the errors of `inspect`, or ImageUndecodable where the pixel data is truncated or corrupt.
    """
    with _decoding(data) as source:
        return source.at(1)


def prepare(data: bytes, *, remove_artifacts: bool = False) -> Prepared:
    """Decode, crop the frame and resize: the only way from bytes to what the network sees.

    The whole kept region is resized to a square without keeping its aspect ratio, as the square copies of the public
    data sets were; training varies the aspect ratio so that it carries no information. A JPEG of 1,200 pixels or more
    on its shorter side is decoded at a half, a quarter or an eighth of its size, so far as the kept region still has
    `LEAST_SIDE` pixels a side.

    Args:
        data: an encoded JPEG, PNG or DICOM object.
        remove_artifacts: paint hair over at the end (`artifacts.remove`), for weights that were trained so.

    Raises:
        ImageError: the image is refused; see `decode`.
    """
    with _decoding(data) as source:
        pixels, box = _large_enough(source)
    prepared = _resize(pixels, box)
    return prepared._replace(pixels=artifacts.remove(prepared.pixels)) if remove_artifacts else prepared


def fit(pixels: Pixels) -> Prepared:
    """The part of `prepare` after decoding. `pixels`: uint8 [height, width, 3], upright sRGB."""
    return _resize(pixels, frame(pixels))


def _large_enough(source: _Source) -> tuple[Pixels, Box]:
    """Decode as small as the kept region allows; a second time where the frame crop leaves too little of the first."""
    by = divisor(source.side)
    while True:
        pixels = source.at(by)
        box = left, top, right, bottom = frame(pixels)
        kept = min(right - left, bottom - top)
        if by == 1 or kept >= LEAST_SIDE:
            return pixels, box
        by = divisor(kept * by)


def divisor(side: int) -> int:
    """The most by which `side`, in pixels, can be divided in decoding without falling below `LEAST_SIDE`."""
    return next((by for by in jpeg.DIVISORS if side // by >= LEAST_SIDE), 1)


def _resize(pixels: Pixels, box: Box) -> Prepared:
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    resized = Image.fromarray(pixels).resize(
        (SIDE, SIDE),
        Image.Resampling.BILINEAR,
        box=box,
        # Averages whole blocks first where the image is far larger: 3× faster at 12 megapixels, below one grey level off.
        reducing_gap=3.0,
    )
    return Prepared(np.asarray(resized), Region(left / width, top / height, right / width, bottom / height))


@cache
def preprocessing_hash(*, remove_artifacts: bool = False) -> str:
    """SHA-256 (hex) of what `prepare` makes of four fixed probe images.

    It pins behaviour, not source text: a comment may change, a different decoder or resize may not. The probes pass
    through JPEG decoding at full and reduced size, PNG decoding, EXIF orientation, frame crop, reduction and resize;
    colour profiles and DICOM, which training images do not have, are left to the tests.
    """
    return _digest(_PROBES, remove_artifacts=remove_artifacts)


def require(preprocessing: str, *, remove_artifacts: bool) -> None:
    """Check that this installation prepares images as the weights want them.

    Args:
        preprocessing: the hash in the weights' model card.
        remove_artifacts: as the card says, too.

    Raises:
        PreprocessingMismatch: it does not.
    """
    here = preprocessing_hash(remove_artifacts=remove_artifacts)
    if preprocessing != here:
        raise PreprocessingMismatch(
            f"The model card's preprocessing is {preprocessing[:12]}, this installation's is {here[:12]}: "
            "install the pinned requirements, or train and export again."
        )


_PROBES: Final = ("probe.jpg", "probe.png", "large.jpg", "framed.jpg")


def _digest(probes: Iterable[str], *, remove_artifacts: bool) -> str:
    digest = hashlib.sha256()
    for name in probes:
        data = files("dermserve").joinpath("probes", name).read_bytes()
        pixels, region = prepare(data, remove_artifacts=remove_artifacts)
        digest.update(pixels.tobytes())
        digest.update(np.asarray(region, "<f8").tobytes())
    return digest.hexdigest()


@contextmanager
def _decoding(data: bytes) -> Iterator[_Source]:
    """Open `data` for decoding; whatever decoders say against it becomes an ImageError."""
    kind = inspect(data).format
    try:
        with warnings.catch_warnings():
            # A Pillow or pydicom warning (odd EXIF block, unusual tag) is no reason to refuse or to print.
            warnings.simplefilter("ignore")
            yield _SOURCES[kind](data)
    except ImageError:
        raise
    except Exception as error:
        raise ImageUndecodable(f"The {kind.upper()} data is truncated or corrupt.") from error


def _sniff(data: bytes) -> Format:
    if not data:
        raise ImageEmpty("The image holds no bytes.")
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"The image is {len(data):,} bytes; at most {MAX_BYTES:,} are accepted.")
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(_PNG_SIGNATURE):
        return "png"
    if data[128:132] == b"DICM":
        return "dicom"
    raise UnsupportedImageType("The bytes are neither JPEG, PNG nor DICOM.")


def _png_dimensions(data: bytes) -> tuple[int, int]:
    # PNG 1.2 §11.2.2: the IHDR chunk comes first, so width and height stand at fixed places.
    if data[12:16] != b"IHDR":
        raise ImageUndecodable("The PNG header is damaged.")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _decode_png(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.size != _png_dimensions(data):  # a file may hold a second header
            raise ImageUndecodable("The header contradicts itself.")
        png.require_whole(data)
        return np.asarray(colour.upright(image))


class _Source(NamedTuple):
    """`at(divisor)` decodes; `side`: the shorter side if it can do so at a reduced size, else 0. In pixels."""

    at: Callable[[int], Pixels]
    side: int


def _jpeg_source(data: bytes) -> _Source:
    return _Source(partial(jpeg.decode, data), min(jpeg.dimensions(data)))


def _png_source(data: bytes) -> _Source:
    return _Source(lambda _divisor: _decode_png(data), 0)


def _dicom_source(data: bytes) -> _Source:
    found = dicom.first_frame(data)
    if not isinstance(found, dicom.Jpeg):
        return _Source(lambda _divisor: found, 0)

    def at(divisor: int) -> Pixels:
        pixels = jpeg.decode(found.data, divisor, found.profile)
        return np.invert(pixels) if found.inverted else pixels

    return _Source(at, min(jpeg.dimensions(found.data)))


_DIMENSIONS: Final = {"jpeg": jpeg.dimensions, "png": _png_dimensions, "dicom": dicom.dimensions}
_SOURCES: Final = {"jpeg": _jpeg_source, "png": _png_source, "dicom": _dicom_source}
