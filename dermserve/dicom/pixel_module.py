"""The image pixel module (PS3.3 C.7.6.3) and what tells how its values are seen, read and checked as one description."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dermserve.dicom.elements import DataSet, Element
from dermserve.dicom.part10 import text
from dermserve.errors import ImageTooLarge, ImageUndecodable, UnsupportedImageType

MAX_FRAMES: Final = 1_000
"""Frames of one object."""

MAX_ALL_PIXELS: Final = 500_000_000
"""Pixels of all frames of one object together; the bound on one frame is `image.MAX_PIXELS`."""

MAX_PROFILE: Final = 4 * 1024 * 1024
"""Bytes of a colour profile; those of cameras and screens have 500 to 600,000."""

_GREATEST: Final = 1e9
"""Of a rescaling and a window; stored values end at 65,535."""

PIXEL_DATA: Final = 0x7FE00010
EXTENDED_OFFSETS: Final = 0x7FE00001
_SAMPLES: Final = 0x00280002
_PHOTOMETRIC: Final = 0x00280004
_PLANAR: Final = 0x00280006
_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_ALLOCATED: Final = 0x00280100
_STORED: Final = 0x00280101
_HIGH: Final = 0x00280102
_SIGNED: Final = 0x00280103
_CENTER: Final = 0x00281050
_WIDTH: Final = 0x00281051
_INTERCEPT: Final = 0x00281052
_SLOPE: Final = 0x00281053
_FUNCTION: Final = 0x00281056
_DESCRIPTORS: Final = (0x00281101, 0x00281102, 0x00281103)
_TABLES: Final = (0x00281201, 0x00281202, 0x00281203)
_PROFILE: Final = 0x00282000
_OPTICAL_PATHS: Final = 0x00480105
_SEGMENTED: Final = 0x00281221

SHAPE: Final = frozenset({_FRAMES, _ROWS, _COLUMNS})
ALL: Final = SHAPE | {
    _SAMPLES, _PHOTOMETRIC, _PLANAR, _ALLOCATED, _STORED, _HIGH, _SIGNED, _CENTER, _WIDTH, _INTERCEPT, _SLOPE, _FUNCTION,
    *_DESCRIPTORS, *_TABLES, _PROFILE, _OPTICAL_PATHS, _SEGMENTED, EXTENDED_OFFSETS, PIXEL_DATA,
}  # fmt: skip

SAMPLES: Final = {
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1,
    "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3,
}  # fmt: skip
"""Samples per pixel of each accepted photometric interpretation (PS3.3 C.7.6.3.1.2)."""


@dataclass(frozen=True)
class Window:
    """VOI window (PS3.3 C.11.2.1.2): centre and width, in values after rescaling. `function`: as the standard spells it."""

    center: float
    width: float
    function: str = "LINEAR"


class Palette(NamedTuple):
    """One palette colour table (PS3.3 C.7.6.3.1.5): what stored value the first entry is for, and the entries, uint8 [n].

    Of entries with sixteen bits the upper eight are kept.
    """

    first: int
    entries: NDArray[np.uint8]


@dataclass(frozen=True)
class Pixels:
    """What the header says of the pixels. `profile` is an ICC profile; `palette` has three tables or none."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    signed: bool
    window: Window | None
    slope: float
    intercept: float
    palette: tuple[Palette, ...]
    profile: bytes | None

    @property
    def grey(self) -> bool:
        """Whether a value is a shade of grey."""
        return self.photometric.startswith("MONOCHROME")


class _Values:
    """Typed values of the elements that were found."""

    def __init__(self, dataset: DataSet, found: dict[int, Element]) -> None:
        self._dataset = dataset
        self._found = found
        self.order = dataset.encoding.order

    def raw(self, tag: int) -> bytes:
        found = self._found.get(tag)
        return b"" if found is None else self._dataset.data[found.start : found.end]

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Of 16 bits without sign."""
        raw = self.raw(tag)
        return struct.unpack(f"{self.order}{len(raw) // 2}H", raw)

    def number(self, tag: int, default: int | None = None) -> int:
        found = self.numbers(tag)
        if not found and default is not None:
            return default
        if len(found) != 1:
            raise ImageUndecodable("The DICOM header lacks an attribute of its pixels, or gives it twice.")
        return found[0]

    def decimal(self, tag: int, default: float) -> float:
        """The first of the decimal strings."""
        value = text(self.raw(tag)[:256]).split("\\")[0].strip()
        number = float(value) if value else default
        if not abs(number) <= _GREATEST:  # nor not-a-number
            raise ImageUndecodable("The DICOM header holds a number that is none.")
        return number

    def code(self, tag: int) -> str:
        return text(self.raw(tag)[:64])


def shape(dataset: DataSet, found: dict[int, Element]) -> tuple[int, int, int]:
    """Rows, columns and the number of frames.

    Raises:
        UnsupportedImageType: the object holds no image.
        ImageUndecodable: one of the three is no number.
        ImageTooLarge: too many frames, or pixels in all frames together.
    """
    if _ROWS not in found or _COLUMNS not in found:
        raise UnsupportedImageType("The DICOM object holds no image.")
    values = _Values(dataset, found)
    rows, columns, said = values.number(_ROWS), values.number(_COLUMNS), values.code(_FRAMES) or "1"
    if not (said.isascii() and said.isdecimal()) or int(said) < 1:
        raise ImageUndecodable("The DICOM header's number of frames is none.")
    frames = int(said)
    if frames > MAX_FRAMES:
        raise ImageTooLarge(f"The DICOM object has {frames:,} frames; at most {MAX_FRAMES:,} are accepted.")
    if frames * rows * columns > MAX_ALL_PIXELS:
        raise ImageTooLarge(
            f"The {frames} frames have {rows * columns * frames // 1_000_000} megapixels; "
            f"at most {MAX_ALL_PIXELS // 1_000_000} in one object are accepted."
        )
    return rows, columns, frames


def read(dataset: DataSet, found: dict[int, Element]) -> Pixels:
    """Read the description, and refuse what contradicts itself.

    Raises:
        UnsupportedImageType, ImageUndecodable, ImageTooLarge: see `dermserve.errors`.
    """
    rows, columns, frames = shape(dataset, found)
    values = _Values(dataset, found)
    photometric = values.code(_PHOTOMETRIC)
    samples, allocated = values.number(_SAMPLES), values.number(_ALLOCATED)
    stored = values.number(_STORED)
    high = values.number(_HIGH, stored - 1)
    if photometric not in SAMPLES:
        raise UnsupportedImageType("DICOM pixels of this photometric interpretation are not accepted.")
    if samples != SAMPLES[photometric]:
        raise ImageUndecodable(f"The DICOM header says {photometric} and {samples} samples per pixel.")
    if allocated not in (8, 16) or (samples == 3 and stored < 8):
        raise UnsupportedImageType(f"DICOM pixels of {stored} bits in {allocated} are not accepted.")
    planar, signed = values.number(_PLANAR, 0), values.number(_SIGNED, 0)
    if not 1 <= stored == high + 1 <= allocated or planar > 1 or signed > 1 or (samples == 3 and signed):
        raise ImageUndecodable("The DICOM header contradicts itself about the bits of a pixel.")
    grey = photometric.startswith("MONOCHROME")
    return Pixels(
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        photometric=photometric,
        planar=planar,
        allocated=allocated,
        stored=stored,
        signed=bool(signed),
        window=_window(values) if grey else None,
        slope=values.decimal(_SLOPE, 1.0) if grey else 1.0,
        intercept=values.decimal(_INTERCEPT, 0.0) if grey else 0.0,
        palette=_palette(values, found, signed=bool(signed)) if photometric == "PALETTE COLOR" else (),
        profile=None if grey else _profile(dataset, found, values),
    )


def _window(values: _Values) -> Window | None:
    if not values.raw(_CENTER) or not values.raw(_WIDTH):
        return None
    width = values.decimal(_WIDTH, 0.0)
    function = values.code(_FUNCTION) or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UnsupportedImageType("A window of this VOI LUT function is not accepted.")
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ImageUndecodable("The DICOM header's window has no width.")
    return Window(values.decimal(_CENTER, 0.0), width, function)


def _palette(values: _Values, found: dict[int, Element], *, signed: bool) -> tuple[Palette, ...]:
    if _SEGMENTED in found:
        raise UnsupportedImageType("Segmented palettes are not accepted.")
    tables = []
    for descriptor, table in zip(_DESCRIPTORS, _TABLES, strict=True):
        raw, said = values.raw(table), values.numbers(descriptor)
        if len(said) != 3:
            raise ImageUndecodable("The DICOM object lacks a palette.")
        count, first, bits = said[0] or 65_536, said[1], said[2]
        words = np.frombuffer(raw, values.order + "u2", len(raw) // 2)
        if bits == 16:
            entries = (words >> 8).astype(np.uint8)
        elif len(words) == count:  # one entry to a word, as some write them
            entries = (words & 0xFF).astype(np.uint8)
        else:
            entries = words.astype("<u2").view(np.uint8)
        if bits not in (8, 16) or not count <= len(entries) <= count + 1:
            raise ImageUndecodable("A palette of the DICOM object has not the length that it says.")
        tables.append(Palette(first - 65_536 if signed and first > 32_767 else first, entries[:count]))
    return tuple(tables)


def _profile(dataset: DataSet, found: dict[int, Element], values: _Values) -> bytes | None:
    """PS3.3 C.11.15: at the top level; C.8.12.5: in the optical path, where all frames of a photograph have the same."""
    raw = values.raw(_PROFILE)
    if not raw and _OPTICAL_PATHS in found:
        for span in dataset.items(found[_OPTICAL_PATHS]):
            inside = dataset.find({_PROFILE}, span)
            if _PROFILE in inside:
                raw = dataset.data[inside[_PROFILE].start : inside[_PROFILE].end]
                break
    if len(raw) > MAX_PROFILE:
        raise ImageTooLarge(f"The colour profile has more than {MAX_PROFILE:,} bytes.")
    return raw or None
