"""From what a file stores to how it is meant to be seen: 8 bits, sRGB by its colour profile, upright by its EXIF tag."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image, ImageCms

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


def upright(image: Image.Image) -> Image.Image:
    """Load an opened image: RGB, 8 bits, sRGB, EXIF orientation applied."""
    return transposed(to_srgb(_to_8_bit(image), image.info.get("icc_profile")), orientation(image))


def to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """Apply a colour profile (the bytes of an ICC profile, or None), and make the image RGB."""
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


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What undoes the EXIF orientation, or None where there is nothing to undo."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block is no reason to refuse the picture
        return None


def transposed(image: Image.Image, operation: Image.Transpose | None) -> Image.Image:
    """The image after one of the operations that `orientation` names."""
    return image if operation is None else image.transpose(operation)


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # What lies under full transparency is arbitrary; black is what the frame crop knows how to remove.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image
