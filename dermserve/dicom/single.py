"""Raw frames, and a frame made into an object of its own."""

from __future__ import annotations

import numpy as np

from dermserve.dicom import encapsulated as fragments
from dermserve.dicom.decoders import Values
from dermserve.dicom.part10 import bare, element
from dermserve.dicom.pixel_module import Palette, Pixels
from dermserve.errors import ImageUndecodable


def frame_bytes(header: Pixels) -> int:
    """Bytes of one raw frame (PS3.5 §8.2); YBR_FULL_422 has two samples for each pixel (PS3.3 C.7.6.3.1.2)."""
    samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
    return header.rows * header.columns * samples * (header.allocated // 8)


def raw(frame: bytes, header: Pixels) -> Values:
    """Stored values of a raw frame in little endian: [rows, columns] or [rows, columns, 3].

    Raises:
        ImageUndecodable: halved chroma in a row of odd length, or in planes.
    """
    values: Values = np.frombuffer(frame, np.uint8 if header.allocated == 8 else "<u2")
    if header.samples == 1:
        return values.reshape(header.rows, header.columns)
    if header.photometric == "YBR_FULL_422":
        if header.columns % 2 or header.planar:
            raise ImageUndecodable("The DICOM header contradicts itself about the chroma.")
        pairs = values.reshape(header.rows, header.columns // 2, 4)  # Y Y Cb Cr
        bright = pairs[..., :2].reshape(header.rows, header.columns, 1)
        return np.concatenate([bright, np.repeat(pairs[..., 2:], 2, axis=1)], axis=2)
    if header.planar:
        return np.moveaxis(values.reshape(3, header.rows, header.columns), 0, -1)
    return values.reshape(header.rows, header.columns, 3)


def file(frame: bytes, header: Pixels, syntax: str, *, encapsulated: bool) -> bytes:
    """A part 10 file of one frame. `frame`: as stored; a raw one in little endian, for a `syntax` of explicit VR."""
    elements = [
        element(0x00280002, "US", header.samples),
        element(0x00280004, "CS", header.photometric),
        element(0x00280006, "US", header.planar),
        element(0x00280010, "US", header.rows),
        element(0x00280011, "US", header.columns),
        element(0x00280100, "US", header.allocated),
        element(0x00280101, "US", header.stored),
        element(0x00280102, "US", header.stored - 1),
        element(0x00280103, "US", int(header.signed)),
    ]
    if header.window:
        elements += [
            element(0x00281050, "DS", repr(header.window.center)),
            element(0x00281051, "DS", repr(header.window.width)),
        ]
    elements += [
        element(0x00281052, "DS", repr(header.intercept)),
        element(0x00281053, "DS", repr(header.slope)),
    ]
    if header.window:
        elements.append(element(0x00281056, "CS", header.window.function))
    elements += [
        element(0x00281101 + number, "US", _descriptor(palette)) for number, palette in enumerate(header.palette)
    ]
    elements += [
        element(0x00281201 + number, "OW", palette.entries.tobytes()) for number, palette in enumerate(header.palette)
    ]
    if header.profile:
        elements.append(element(0x00282000, "OB", header.profile))
    vr = "OB" if encapsulated or header.allocated == 8 else "OW"
    value = fragments.encapsulate(frame) if encapsulated else frame
    pixels = element(0x7FE00010, vr, value)
    if encapsulated:
        pixels = pixels[:8] + b"\xff\xff\xff\xff" + pixels[12:]  # its end is marked instead
    return bare(b"".join((*elements, pixels)), syntax)


def _descriptor(palette: Palette) -> bytes:
    """Entries (65,536 is written as 0), first value, bits."""
    return np.array([len(palette.entries) & 0xFFFF, palette.first & 0xFFFF, 8], "<u2").tobytes()
