"""Bytes to the one tensor that every part of dermserve sees: 300×300×3, uint8, sRGB.

Training, calibration, export parity, Triton's `preprocess` and the command line all call `prepare`. What it does is
pinned by `preprocessing_hash`, which the model card holds and a server checks before it loads the model.

Order of work, cheapest refusal first: size in bytes → magic bytes → dimensions from the header → decode → colour
profile to sRGB → EXIF orientation → frame crop → resize. Nothing is decoded before its dimensions are known.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from dermserve import artifacts, dicom, png
from dermserve.errors import (
    ImageEmpty,
    ImageError,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    UnsupportedImageType,
)

SIDE: Final = 300
"""Height and width of the prepared tensor in pixels: EfficientNet-B3's own training resolution."""

MAX_BYTES: Final = 32 * 1024 * 1024
MAX_PIXELS: Final = 50_000_000
MAX_SIDE: Final = 20_000
MIN_SIDE: Final = 32

Format = Literal["jpeg", "png", "dicom"]
Pixels = NDArray[np.uint8]

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

# Pixel operations that undo each EXIF orientation (EXIF 2.32, tag 0x0112).
_ORIENTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    kind = inspect(data).format
    try:
        with warnings.catch_warnings():
            # A Pillow or pydicom warning (odd EXIF block, unusual tag) is no reason to refuse or to print.
            warnings.simplefilter("ignore")
            return _DECODERS[kind](data)
    except ImageError:
        raise
    except Exception as error:
        raise ImageUndecodable(f"The {kind.upper()} data is truncated or corrupt.") from error


def prepare(data: bytes, *, remove_artifacts: bool = False) -> Prepared:
    """Decode, crop the frame and resize: the only way from bytes to what the network sees.

    The whole kept region is resized to a square without keeping its aspect ratio, as the square copies of the public
    data sets were; training varies the aspect ratio so that it carries no information.

    Args:
        data: an encoded JPEG, PNG or DICOM object.
        remove_artifacts: paint hair over at the end (`artifacts.remove`), for weights that were trained so.

    Raises:
        ImageError: the image is refused; see `decode`.
    """
    prepared = fit(decode(data))
    return prepared._replace(pixels=artifacts.remove(prepared.pixels)) if remove_artifacts else prepared


def fit(pixels: Pixels) -> Prepared:
    """The part of `prepare` after decoding. `pixels`: uint8 [height, width, 3], upright sRGB."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = frame(pixels)
    resized = Image.fromarray(pixels).resize(
        (SIDE, SIDE),
        Image.Resampling.BILINEAR,
        box=(left, top, right, bottom),
        # Averages whole blocks first where the image is far larger: 3× faster at 12 megapixels, below one grey level off.
        reducing_gap=3.0,
    )
    return Prepared(np.asarray(resized), Region(left / width, top / height, right / width, bottom / height))


def frame(pixels: Pixels) -> tuple[int, int, int, int]:
    """Find the picture inside a black frame: borders of a contact dermatoscope, or the dark corners of its round view.

    Returns (left, top, right, bottom) in pixels, right and bottom exclusive. A row or column stays when at least half
    of it (within the box of everything that is not black) is brighter than black; for a circle that keeps 87 % of its
    diameter. The whole image is returned when there is no frame, or when so little is bright that the guess is unsafe.
    """
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // 150)
    bright = pixels[::step, ::step].max(axis=2) > _BLACK
    box = _extent(bright, 0.02)
    if box is None:
        return 0, 0, width, height
    left, top, right, bottom = box
    inner = _extent(bright[top:bottom, left:right], 0.5)
    if inner is None:
        return 0, 0, width, height
    left, top, right, bottom = left + inner[0], top + inner[1], left + inner[2], top + inner[3]
    rows, columns = bright.shape
    kept = (right - left) * (bottom - top) / (rows * columns)
    if kept < _LEAST_KEPT or kept > _MOST_KEPT:
        return 0, 0, width, height
    return left * step, top * step, min(width, right * step), min(height, bottom * step)


# Brightest channel of a pixel that still counts as black: above the sensor noise of a frame, below dark pigment.
_BLACK: Final = 24
_LEAST_KEPT: Final = 0.15
_MOST_KEPT: Final = 0.98


def _extent(mask: NDArray[np.bool_], share: float) -> tuple[int, int, int, int] | None:
    """First and last column and row of which more than `share` is set, as (left, top, right, bottom)."""
    columns = np.flatnonzero(mask.mean(axis=0) > share)
    rows = np.flatnonzero(mask.mean(axis=1) > share)
    if not columns.size or not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@cache
def preprocessing_hash(*, remove_artifacts: bool = False) -> str:
    """SHA-256 (hex) of what `prepare` makes of two fixed probe images.

    It pins behaviour, not source text: a comment may change, a different decoder or resize may not. The probes pass
    through JPEG and PNG decoding, EXIF orientation, frame crop, reduction and resize; colour profiles and DICOM, which
    training images do not have, are left to the tests.
    """
    digest = hashlib.sha256()
    for name in ("probe.jpg", "probe.png"):
        probe = files("dermserve").joinpath("probes", name).read_bytes()
        pixels, region = prepare(probe, remove_artifacts=remove_artifacts)
        digest.update(pixels.tobytes())
        digest.update(np.asarray(region, "<f8").tobytes())
    return digest.hexdigest()


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


def _jpeg_dimensions(data: bytes) -> tuple[int, int]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    return width, height


def _png_dimensions(data: bytes) -> tuple[int, int]:
    # PNG 1.2 §11.2.2: the IHDR chunk comes first, so width and height stand at fixed places.
    if data[12:16] != b"IHDR":
        raise ImageUndecodable("The PNG header is damaged.")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _decode_jpeg(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:  # lazy: reads the markers, not the pixels
        _require_size(image, _jpeg_dimensions(data))
        if image.mode == "CMYK":  # also YCCK; libjpeg cannot turn these into RGB
            simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)  # only to refuse damage, which Pillow fills in
            return _upright(image)
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
    # strict: libjpeg only warns about a damaged or short stream and fills in grey; a lesion filled in grey is no result.
    pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    if profile is None and orientation is None:
        return pixels
    return np.asarray(_transpose(_to_srgb(Image.fromarray(pixels), profile), orientation))


def _decode_png(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        _require_size(image, _png_dimensions(data))
        png.require_whole(data)
        return _upright(image)


def _require_size(image: Image.Image, checked: tuple[int, int]) -> None:
    """A file may hold a second header; what is decoded must be what was checked."""
    if image.size != checked:
        raise ImageUndecodable("The header contradicts itself.")


def _upright(image: Image.Image) -> Pixels:
    return np.asarray(_transpose(_to_srgb(_to_8_bit(image), image.info.get("icc_profile")), _orientation(image)))


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # What lies under full transparency is arbitrary; black is what the frame crop knows how to remove.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    if isinstance(profile, bytes) and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile says nothing; the pixels are then taken as sRGB, as every viewer does
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block is no reason to refuse the picture
        return None


def _transpose(image: Image.Image, operation: Image.Transpose | None) -> Image.Image:
    return image if operation is None else image.transpose(operation)


def _decode_dicom(data: bytes) -> Pixels:
    frame_, photometric = dicom.first_frame(data)
    if isinstance(frame_, bytes):
        if inspect(frame_).format != "jpeg":
            raise ImageUndecodable("The DICOM object's pixel data is not the JPEG that it promises.")
        pixels = _decode_jpeg(frame_)
        return np.invert(pixels) if photometric == "MONOCHROME1" else pixels
    return frame_


_DIMENSIONS: Final = {"jpeg": _jpeg_dimensions, "png": _png_dimensions, "dicom": dicom.dimensions}
_DECODERS: Final = {"jpeg": _decode_jpeg, "png": _decode_png, "dicom": _decode_dicom}
