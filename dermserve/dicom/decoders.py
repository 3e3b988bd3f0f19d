"""Compressed frames to stored values: unsigned containers, uint8 or uint16, [rows, columns] or [rows, columns, 3].

A decoder sees a stream only after its own header was found to agree with that of the DICOM object.
"""

from __future__ import annotations

import io
import struct
from importlib import import_module
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dermserve import jpeg
from dermserve.dicom import codestream
from dermserve.dicom.pixel_module import Pixels
from dermserve.errors import ImageUndecodable, UnsupportedImageType

Values = NDArray[Any]
"""uint8 or uint16."""

_CONTRADICTION: Final = "The DICOM header and the compressed pixel data contradict each other."


def jpeg_lossy(stream: bytes, header: Pixels) -> bytes:
    """The stream of a lossy JPEG, checked, as `dermserve.jpeg` takes it.

    Raises:
        UnsupportedImageType: 12 bits, or a process that is not one of the sequential and progressive DCT ones.
        ImageUndecodable: header and stream contradict each other.
    """
    stream = stream.rstrip(b"\x00")  # padding to even length
    found = codestream.jpeg_frame(stream)
    if found.precision == 12:
        raise UnsupportedImageType("JPEG with 12 bits is not accepted.")
    if header.photometric not in ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422"):
        raise UnsupportedImageType(f"JPEG with the photometric interpretation {header.photometric} is not accepted.")
    if found.lossless:
        raise ImageUndecodable("The DICOM object's pixel data is not the JPEG that it promises.")
    _require_jpeg(found, header)
    if jpeg.dimensions(stream) != (header.columns, header.rows):  # what libjpeg takes for the frame header
        raise ImageUndecodable(_CONTRADICTION)
    if header.photometric == "RGB" and b"JFIF" not in stream[:32] and b"Adobe" not in stream[:4096]:
        stream = stream[:2] + codestream.ADOBE_RGB + stream[2:]
    return stream


def jpeg_lossless(stream: bytes, header: Pixels) -> Values:
    """Lossless JPEG (T.81 process 14) with 8 bits, by libjpeg-turbo.

    Raises:
        UnsupportedImageType: more than 8 bits, for which no decoder is installed.
        ImageUndecodable: header and stream contradict each other, or the stream is damaged.
    """
    found = codestream.jpeg_frame(stream)
    if not found.lossless:
        raise ImageUndecodable("The DICOM object's pixel data is not the lossless JPEG that it promises.")
    if found.precision != 8:
        raise UnsupportedImageType("Lossless JPEG is accepted with 8 bits only.")
    _require_jpeg(found, header)
    if header.samples == 3:
        stream = codestream.without_colour_markers(stream)
    if jpeg.dimensions(stream) != (header.columns, header.rows):
        raise ImageUndecodable(_CONTRADICTION)
    values: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        stream, colorspace="RGB" if header.samples == 3 else "GRAY", strict=True
    )
    return values if header.samples == 3 else values[..., 0]


def jpeg_ls(stream: bytes, header: Pixels) -> Values:
    """JPEG-LS (T.87), lossless or near-lossless, by CharLS.

    Raises:
        UnsupportedImageType: no decoder is installed.
        ImageUndecodable: header and stream contradict each other, or the stream is damaged.
    """
    try:
        charls: Any = import_module("_CharLS")
    except ImportError as error:
        raise UnsupportedImageType("No decoder for JPEG-LS is installed.") from error
    stream = stream.rstrip(b"\x00")
    if not stream.endswith(b"\xff\xd9"):  # where no marker ends the bits, CharLS counts zeros for seconds
        raise ImageUndecodable("The JPEG-LS stream has no end.")
    found = charls.read_header(stream)
    seen = (found["width"], found["height"], found["components"])
    if seen != (header.columns, header.rows, header.samples):
        raise ImageUndecodable(_CONTRADICTION)
    _require_bits(found["bits_per_sample"], header)
    values = np.frombuffer(charls._decode(stream), np.uint8 if found["bits_per_sample"] <= 8 else "<u2")
    if header.samples == 1:
        return values.reshape(header.rows, header.columns)
    if found["interleave_mode"] == 0:
        return np.moveaxis(values.reshape(3, header.rows, header.columns), 0, -1)
    return values.reshape(header.rows, header.columns, 3)


def jpeg_2000(stream: bytes, header: Pixels) -> Values:
    """JPEG 2000 and high-throughput JPEG 2000, by the OpenJPEG that Pillow holds.

    Raises:
        UnsupportedImageType: more than 8 bits in colour, or a form that `codestream.jpeg_2000` does not take.
        ImageUndecodable: header and stream contradict each other, or the stream is damaged.
    """
    stream, found = codestream.jpeg_2000(stream)
    if (found.width, found.height, found.components) != (header.columns, header.rows, header.samples):
        raise ImageUndecodable(_CONTRADICTION)
    if found.precision > (16 if header.samples == 1 else 8):
        raise UnsupportedImageType("JPEG 2000 is accepted with 8 bits in colour and 16 in grey at most.")
    _require_bits(found.precision, header)
    if found.signed != header.signed:
        raise ImageUndecodable(_CONTRADICTION)
    # PS3.5 §8.2.4: the transform of the stream makes RGB, and is named in the photometric interpretation.
    if found.transformed and header.photometric == "YBR_FULL":
        raise ImageUndecodable(_CONTRADICTION)
    if not found.transformed and header.photometric in ("YBR_RCT", "YBR_ICT"):
        raise ImageUndecodable(_CONTRADICTION)
    with Image.open(io.BytesIO(stream), formats=("JPEG2000",)) as image:
        if image.size != (header.columns, header.rows):
            raise ImageUndecodable(_CONTRADICTION)
        values: NDArray[Any] = np.asarray(image)
    depth = 16 if values.dtype == np.uint16 else 8  # Pillow moves values to the top of what holds them
    if found.precision < depth:
        values = values >> (depth - found.precision)
    if found.signed:  # and adds half the range, where the header means two's complement
        middle = 1 << (found.precision - 1)
        values = (values.astype(np.int32) - middle).astype(np.int16).view(np.uint16)
    return values


def rle(stream: bytes, header: Pixels) -> Values:
    """DICOM's own run-length coding (PS3.5 annex G).

    pydicom decodes it, too, but lets 32 MiB grow to two gigabytes before it compares with what was promised.

    Raises:
        ImageUndecodable: segments are missing, out of order, or not of the promised length.
    """
    depth = header.allocated // 8
    count = header.samples * depth
    said, *offsets = struct.unpack_from("<16I", stream)
    bounds = [*offsets[:count], len(stream)]
    if said != count or bounds[0] < 64 or bounds != sorted(bounds):
        raise ImageUndecodable("The segments of the run-length coded pixel data are damaged.")
    size = header.rows * header.columns
    planes = np.empty((header.samples, depth, size), np.uint8)
    for number in range(count):
        segment = stream[bounds[number] : bounds[number + 1]]
        # Annex G.3: the most significant byte comes first.
        planes[number // depth, depth - 1 - number % depth] = np.frombuffer(_runs(segment, size), np.uint8)
    joined = np.moveaxis(planes, 1, -1).copy().view("<u2" if depth == 2 else np.uint8)[..., 0]
    values = joined.reshape(header.samples, header.rows, header.columns)
    return values[0] if header.samples == 1 else np.moveaxis(values, 0, -1)


def _runs(segment: bytes, size: int) -> bytes:
    """PS3.5 §G.3.2, up to `size` bytes; what follows may be padding, one byte, and nothing else."""
    if len(segment) > 2 * size + 1:  # single bytes, each behind its count, are the longest form that makes sense
        raise ImageUndecodable("A segment of the run-length coded pixel data is longer than its pixels need.")
    found = bytearray()
    place, end = 0, len(segment) - 1
    while place < end and len(found) < size:
        count = segment[place]
        if count < 128:
            found += segment[place + 1 : place + 2 + count]
            place += 2 + count
        elif count > 128:
            found += segment[place + 1 : place + 2] * (257 - count)
            place += 2
        else:
            place += 1
    if len(found) != size or len(segment) - place not in (0, 1):
        raise ImageUndecodable("A segment of the run-length coded pixel data is not of the promised length.")
    return bytes(found)


def _require_jpeg(found: codestream.JpegFrame, header: Pixels) -> None:
    if (found.width, found.height, found.components) != (header.columns, header.rows, header.samples):
        raise ImageUndecodable(_CONTRADICTION)
    _require_bits(found.precision, header)


def _require_bits(precision: int, header: Pixels) -> None:
    """Encoders write the bits stored; some write those allocated, with zeros above."""
    if precision not in (header.stored, header.allocated):
        raise ImageUndecodable(_CONTRADICTION)
