"""Pixels out of DICOM objects (part 10 files), one frame at a time.

Only what describes pixels is looked at; no patient attribute is read here (`identity` can, and only when asked to).
Nothing large is allocated before the header's dimensions, the length of the pixel data and what a compressed stream says of
itself are known to agree.

Read: implicit and explicit VR little endian, explicit big endian (retired), deflated, JPEG baseline and extended with 8 bits,
lossless JPEG with 8 bits, JPEG-LS, JPEG 2000 and high-throughput JPEG 2000, RLE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from dermserve.dicom import decoders, levels, part10, pixel_module, single
from dermserve.dicom.decoders import Values
from dermserve.dicom.encapsulated import Fragments
from dermserve.dicom.identity import Identity, identity
from dermserve.dicom.part10 import file, is_uid
from dermserve.dicom.pixel_module import MAX_ALL_PIXELS, MAX_FRAMES, PIXEL_DATA, Pixels
from dermserve.errors import ImageError, ImageTooLarge, ImageUndecodable, UnsupportedImageType

__all__ = [
    "MAX_ALL_PIXELS",
    "MAX_FRAMES",
    "MAX_OBJECT_BYTES",
    "TRANSFER_SYNTAXES",
    "Identity",
    "Jpeg",
    "Opened",
    "dimensions",
    "file",
    "first_frame",
    "frames",
    "identity",
    "is_uid",
    "number_of_frames",
    "opened",
]

MAX_OBJECT_BYTES: Final = 256 * 1024 * 1024
"""Bytes of an object with several frames; each frame must then be an image that `image.prepare` accepts."""

_RAW: Final = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    }
)
_JPEG: Final = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit})
_DECODERS: Final[dict[str, Callable[[bytes, Pixels], Values]]] = {
    uid.JPEGLossless: decoders.jpeg_lossless,
    uid.JPEGLosslessSV1: decoders.jpeg_lossless,
    uid.JPEGLSLossless: decoders.jpeg_ls,
    uid.JPEGLSNearLossless: decoders.jpeg_ls,
    uid.JPEG2000Lossless: decoders.jpeg_2000,
    uid.JPEG2000: decoders.jpeg_2000,
    uid.HTJ2KLossless: decoders.jpeg_2000,
    uid.HTJ2KLosslessRPCL: decoders.jpeg_2000,
    uid.HTJ2K: decoders.jpeg_2000,
    uid.RLELossless: decoders.rle,
}

TRANSFER_SYNTAXES: Final = tuple(sorted(map(str, _RAW | _JPEG | _DECODERS.keys())))
"""UIDs of what can be read; a DICOM door offers these."""


class Jpeg(NamedTuple):
    """A frame that stays a JPEG stream, so that its decoder can reduce it.

    `inverted`: its smallest value is white. `profile`: the ICC profile that the header names, before the stream's own.
    """

    data: bytes
    inverted: bool
    profile: bytes | None


class Opened:
    """An object whose header was read; `header` describes every frame. See `opened`."""

    def __init__(self, source: part10.File) -> None:
        dataset = source.dataset
        found = dataset.find(pixel_module.ALL, last=PIXEL_DATA)
        self.header = pixel_module.read(dataset, found)
        self.syntax = source.syntax
        if PIXEL_DATA not in found:
            raise UnsupportedImageType("The DICOM object holds no pixel data.")
        pixels, data = found[PIXEL_DATA], dataset.data
        if pixels.undefined == (self.syntax in _RAW):
            raise ImageUndecodable("The DICOM pixel data is not in the form of its transfer syntax.")
        if pixels.undefined:
            table = found.get(pixel_module.EXTENDED_OFFSETS)
            fragments = Fragments(
                data,
                pixels.start,
                frames=self.header.frames,
                extended=data[table.start : table.end] if table else b"",
                whole=self.syntax == uid.RLELossless,
            )
            self.stored_frame = fragments.frame
            return
        value = memoryview(data)[pixels.start : pixels.end]
        if dataset.encoding.order == ">" and (self.header.allocated == 16 or pixels.vr == b"OW"):
            # Bytes change places within words of 16 bits, whatever they hold (PS3.5 §7.3).
            value = memoryview(np.frombuffer(value, ">u2").astype("<u2").tobytes())
        size = single.frame_bytes(self.header)
        end = size * self.header.frames
        # Some pad with more than the one byte that makes the length even, but with less than a black frame.
        if not 0 <= len(value) - end < size or bytes(value[end:]).strip(b"\x00"):
            raise ImageUndecodable("The DICOM pixel data has not the length that its header says.")
        self.stored_frame = lambda index: bytes(value[index * size : (index + 1) * size])

    stored_frame: Callable[[int], bytes]
    """Bytes of the frame with this number, from 0, as they are stored; those of raw frames in little endian."""

    def frame(self, index: int) -> Jpeg | NDArray[np.uint8]:
        """The frame with this number, from 0, as JPEG or as uint8 [rows, columns, 3] in sRGB; the others are left alone.

        Check the dimensions first (`dermserve.image.inspect` does): they are trusted here.

        Raises:
            IndexError: there is no frame with this number.
            ImageError: the frame is damaged, contradicts the header, or is of a kind that is not read.
        """
        if not 0 <= index < self.header.frames:
            raise IndexError(index)
        stored = self.stored_frame(index)
        try:
            if self.syntax in _JPEG:
                stream = decoders.jpeg_lossy(stored, self.header)
                return Jpeg(stream, self.header.photometric == "MONOCHROME1", self.header.profile)
            decode = _DECODERS.get(self.syntax, single.raw)
            if decode is not single.raw and self.header.photometric == "YBR_FULL_422":
                raise UnsupportedImageType("YBR_FULL_422 is accepted in JPEG and raw pixels only.")
            values = decode(stored, self.header)
        except ImageError:
            raise
        except Exception as error:  # decoders have a tree of errors each
            raise ImageUndecodable("The compressed DICOM pixel data is truncated or corrupt.") from error
        if values.shape[:2] != (self.header.rows, self.header.columns):
            raise ImageUndecodable("The compressed DICOM pixel data is truncated or corrupt.")
        return levels.to_rgb(values, self.header)


def opened(data: bytes) -> Opened:
    """Read the header of a part 10 file with one or more frames and find where each frame lies.

    Raises:
        ImageTooLarge: more than `MAX_OBJECT_BYTES`, too many frames, or pixels in all frames.
        UnsupportedImageType: no image, or a transfer syntax or kind of pixels that is not read.
        ImageUndecodable: the header is damaged or contradicts itself or the pixel data.
    """
    if len(data) > MAX_OBJECT_BYTES:
        raise ImageTooLarge(f"The DICOM object is {len(data):,} bytes; at most {MAX_OBJECT_BYTES:,} are accepted.")
    try:
        return Opened(_read(data))
    except ImageError:
        raise
    except Exception as error:
        raise ImageUndecodable("The DICOM header is damaged.") from error


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an object with one frame, from the header.

    Raises:
        UnsupportedImageType: no pixels, several frames, or a transfer syntax that is not read.
        ImageUndecodable: the header is damaged.
    """
    rows, columns, count = _shape(data)
    if count != 1:
        raise UnsupportedImageType("Only single-frame DICOM images are accepted.")
    return columns, rows


def number_of_frames(data: bytes) -> int:
    """How many frames the header promises, 1 to `MAX_FRAMES`. Raises as `opened` does; nothing is looked at but the header."""
    return _shape(data)[2]


def first_frame(data: bytes) -> Jpeg | NDArray[np.uint8]:
    """The one frame of an object; see `Opened.frame`. Call `dimensions` first: this trusts the size in the header."""
    return opened(data).frame(0)


def frames(data: bytes) -> Iterator[bytes]:
    """Each frame as an object of its own, for `image.prepare`, which makes the same pixels of it as of a whole object.

    Compressed frames stay as they are. What is made holds the attributes of pixels and no others: neither patient nor
    study, nor even a SOP instance, travels with it.

    Raises:
        ImageError: the object is refused; see `opened`. Frames are not decoded here, so a damaged one is found when it is.
    """
    source = opened(data)
    for index in range(source.header.frames):
        raw = source.syntax in _RAW
        syntax = str(uid.ExplicitVRLittleEndian) if raw else source.syntax
        one = single.file(source.stored_frame(index), source.header, syntax, encapsulated=not raw)
        if len(one) > part10.MAX_BYTES:
            raise ImageTooLarge(f"Frame {index + 1} is {len(one):,} bytes; at most {part10.MAX_BYTES:,} are accepted.")
        yield one


def _shape(data: bytes) -> tuple[int, int, int]:
    dataset = _read(data).dataset
    return pixel_module.shape(dataset, dataset.find(pixel_module.SHAPE, last=PIXEL_DATA))


def _read(data: bytes) -> part10.File:
    source = part10.read(data)
    if source.syntax not in TRANSFER_SYNTAXES:
        raise UnsupportedImageType(f"The DICOM transfer syntax {source.syntax[:64]} is not accepted.")
    return source
