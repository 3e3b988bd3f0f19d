"""Damaged DICOM objects from a fixed seed, and the attack with them: `python -m tests.dermserve.mutations 3000`.
`corpus` in place of a number writes the interesting ones into the folder of this name.

Each mutant goes through every function that takes foreign bytes. What comes out must be a result or an ImageError, within the
seconds and the memory that are stated here; anything else ends the attack with the mutant's number and a traceback.
"""

from __future__ import annotations

import collections
import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dermserve import dicom, image
from dermserve.errors import ImageError
from tests.dermserve import encoded
from tests.dermserve.encoded import encode, swapped_profile, waves

MEMORY: int = 1 << 30
"""Address space of the attacked process, in bytes; 400 MB of it are libraries before the first mutant."""

SECONDS: float = 10.0
"""The most that one mutant may take."""

_CORPUS = Path(__file__).parent / "corpus"
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


coded = partial(encoded.coded, SOPInstanceUID="2.25.6")  # the same bytes each time


def objects() -> dict[str, bytes]:
    """Whole objects, one for each transfer syntax and the kinds of pixels that have code of their own."""
    colour, grey, deep = waves(33, 34), waves(33, 34, colour=False), waves(33, 34, bits=16, colour=False)
    region, path = Dataset(), Dataset()
    region.CodeMeaning, path.ICCProfile = "Forearm", swapped_profile()
    nested = {"AnatomicRegionSequence": Sequence([region]), "OpticalPathSequence": Sequence([path])}
    names = ("Red", "Green", "Blue")
    palette = {f"{one}PaletteColorLookupTableDescriptor": [256, 0, 16] for one in names}
    palette |= {f"{one}PaletteColorLookupTableData": np.arange(256, dtype="<u2").tobytes() for one in names}
    window = {"WindowCenter": "900", "WindowWidth": "300", "RescaleSlope": "1.5", "RescaleIntercept": "-7"}
    jpeg = {"PhotometricInterpretation": "YBR_FULL_422"}
    tiled = encode(colour, "JPEG2000", no_jp2=True, mct=1, tile_size=(16, 16))
    fragments = encapsulate([encode(colour), encode(colour[::-1].copy())], fragments_per_frame=3)
    files = {name: (_CORPUS / name).read_bytes() for name in ("htj2k-rgb.jhc", "htj2k-grey16.jhc", "lossless-rgb.jpg")}
    return {
        "implicit": coded([colour], ImplicitVRLittleEndian, **nested),
        "explicit": coded([colour, colour], ExplicitVRLittleEndian, **nested),
        "big endian": coded([deep], ExplicitVRBigEndian, **window),
        "deflated": coded([colour], DeflatedExplicitVRLittleEndian),
        "halved chroma": coded([colour], ExplicitVRLittleEndian, **jpeg, PixelData=bytes(33 * 34 * 2)),
        "palette": coded([grey], ExplicitVRLittleEndian, PhotometricInterpretation="PALETTE COLOR", **palette),
        "jpeg": coded([encode(colour, subsampling=2)], JPEGBaseline8Bit, like=colour, **jpeg, **nested),
        "progressive": coded([encode(colour, progressive=True)], JPEGBaseline8Bit, like=colour, **jpeg),
        "fragments": coded([colour, colour], JPEGBaseline8Bit, PixelData=fragments, **jpeg),
        "lossless jpeg": coded([files["lossless-rgb.jpg"]], JPEGLosslessSV1, like=waves()),
        "jpeg-ls": coded([colour], JPEGLSLossless),
        "jpeg-ls planes": coded([colour], JPEGLSLossless, options={"interleave": 0}),
        "jpeg-ls deep": coded([deep], JPEGLSLossless, **window),
        "jpeg 2000": coded([colour, colour[::-1].copy()], JPEG2000Lossless),
        "jpeg 2000 lossy": coded([colour], JPEG2000, options={"irreversible": True, "quality_layers": [20, 5]}),
        "jpeg 2000 deep": coded([deep], JPEG2000Lossless, **window),
        "jpeg 2000 tiles": coded([tiled], JPEG2000Lossless, like=colour),
        "jp2": coded([encode(colour, "JPEG2000", mct=1)], JPEG2000Lossless, like=colour),
        "htj2k": coded([files["htj2k-rgb.jhc"]], HTJ2KLossless, like=waves(), PhotometricInterpretation="YBR_RCT"),
        "htj2k deep": coded([files["htj2k-grey16.jhc"]], HTJ2KLossless, like=waves(bits=16, colour=False)),
        "rle": coded([colour, colour], RLELossless),
        "rle deep": coded([deep], RLELossless),
    }


def mutants(count: int, seed: int = 6) -> Iterator[tuple[str, bytes]]:
    """What was done to which object, and the bytes: the same for the same seed."""
    whole = objects()
    names = list(whole)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        data, done = whole[name], []
        for _ in range(rng.integers(1, 5)):
            change = _CHANGES[rng.integers(len(_CHANGES))]
            data = change(data, rng)
            done.append(change.__name__.strip("_"))
        yield f"{name}: {', '.join(done)}", data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Somewhere: half of the time in the pixel data, where that is found, a quarter in its first bytes."""
    pixels = max(data.rfind(mark) for mark in _PIXEL_DATA)
    if pixels < 0 or rng.random() < 0.4:
        return int(rng.integers(128, len(data)))
    end = min(len(data), pixels + 200) if rng.random() < 0.5 else len(data)
    return int(rng.integers(pixels, max(pixels + 1, end)))


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    place = _place(data, rng)
    return data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]


def _overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    place, length = _place(data, rng), int(rng.integers(1, 40))
    new = rng.bytes(length) if rng.random() < 0.5 else bytes([int(rng.choice([0, 0x7F, 0x80, 0xFF]))]) * length
    return data[:place] + new + data[place + length :]


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: max(140, _place(data, rng))]


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    place = _place(data, rng)
    return data[:place] + data[place + int(rng.integers(1, 100)) :]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    place, length = _place(data, rng), int(rng.integers(1, 200))
    return data[:place] + data[place : place + length] * int(rng.integers(2, 20)) + data[place + length :]


def _lie(data: bytes, rng: np.random.Generator) -> bytes:
    """A number that could be a length or a size becomes another one, in either order of bytes."""
    place = _place(data, rng)
    form = str(rng.choice(["<H", ">H", "<I", ">I"]))
    value = int(rng.choice([0, 1, 2, 33, 255, 32_767, 60_000, 65_535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]))
    new = struct.pack(form, value & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
    return data[:place] + new + data[place + len(new) :]


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the attributes that describe pixels gets another value (explicit little endian, and implicit where it fits)."""
    element = int(rng.choice([0x02, 0x06, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103, 0x1101]))
    start = data.find(struct.pack("<HH", 0x28, element))
    if start < 0:
        return _lie(data, rng)
    value = int(rng.choice([0, 1, 3, 7, 8, 9, 15, 16, 17, 32, 255, 10_000, 65_535]))
    return data[: start + 8] + struct.pack("<H", value) + data[start + 10 :]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    """Marks of sequences and items, markers of streams, whole constructions, where elements may stand."""
    start = data.find(b"\x28\x00\x02\x00") if rng.random() < 0.7 else _place(data, rng)
    parts = [
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
        b"\xfe\xff\x0d\xe0\x00\x00\x00\x00",
        b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",
        b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff" * 3,
        b"\x08\x00\x40\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 60,
        b"\x09\x00\x10\x11UN\x00\x00\xff\xff\xff\xff",
        b"\x28\x00\x08\x00IS\x0c\x00" + b"999999999999",
        b"\x28\x00\x08\x00IS\x02\x0012",
        b"\x08\x00\x05\x00CS\x10\x00ISO 2022 IR 87\\ ",
        b"\x28\x00\x50\x10DS\xfe\xff" + b"9" * 65_534,
        b"\xff\xd8\xff",
        b"\xff\xd9",
        b"\xff\x4f\xff\x51",
        b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x0e\x00\x01\xff\x93",
        b"\xff\x5f\x00\x09\x00\x00\x00\x01\x00\x00\x01",
        b"\xff\xdd\x00\x04\x00\x01",
        b"\xff\xf8\x00\x0d\x01" + bytes(10),
    ]
    start = max(start, 140)
    return data[:start] + parts[int(rng.integers(len(parts)))] * int(rng.integers(1, 4)) + data[start:]


def _deflate(data: bytes, rng: np.random.Generator) -> bytes:
    """A deflated data set that is long, cut, or an object within."""
    syntax = DeflatedExplicitVRLittleEndian.encode()
    start = 144 + int.from_bytes(data[140:144], "little")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
    size = int(rng.choice([1 << 10, 1 << 16, 1 << 20, 34 << 20], p=[0.3, 0.3, 0.3, 0.1]))
    body = squeeze.compress(data[start : start + int(rng.integers(1, 5000))] + bytes(size)) + squeeze.flush()
    group = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    return data[:132] + b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(group)) + group + body


_CHANGES: list[Callable[[bytes, np.random.Generator], bytes]] = [
    _flip, _flip, _flip, _overwrite, _overwrite, _truncate, _remove, _repeat, _lie, _lie, _header, _insert, _insert, _deflate,
]  # fmt: skip


def interesting() -> dict[str, bytes]:
    """Small objects that a reader of less care accepts, waits for, or gives its memory to; each must be refused."""
    colour = waves(33, 34)
    plain = coded([colour], ImplicitVRLittleEndian)
    start = plain.index(b"\x28\x00\x02\x00")
    endless = encoded.stream(colour, JPEGLSLossless)[:-9]
    wavelet = encoded.stream(colour, JPEG2000Lossless)
    tiled = encode(colour, "JPEG2000", no_jp2=True, mct=1, tile_size=(16, 16))
    tiles = [place for place in range(len(tiled)) if tiled[place : place + 4] == b"\xff\x90\x00\x0a"]
    huge = wavelet[:8] + struct.pack(">6I", 60_000, 60_000, 0, 0, 60_000, 60_000) + wavelet[32:]
    table = bytearray(encapsulate([encode(colour)] * 2, fragments_per_frame=2))
    table[12:16] = struct.pack("<I", 2**32 - 2)
    jpeg = {"PhotometricInterpretation": "YBR_FULL"}
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    syntax = b"\x02\x00\x10\x00UI\x16\x00" + DeflatedExplicitVRLittleEndian.encode()
    group = b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(syntax)) + syntax
    bomb = bytes(128) + b"DICM" + group + squeeze.compress(bytes(40 << 20)) + squeeze.flush()
    return {
        "jpeg-ls-without-end": coded([endless], JPEGLSLossless, like=colour),
        "jpeg2000-60000-pixels": coded([huge], JPEG2000Lossless, like=colour),
        "jpeg2000-lacks-a-tile": coded([tiled[: tiles[2]] + tiled[tiles[3] :]], JPEG2000Lossless, like=colour),
        "jpeg2000-65535-layers": coded(
            [wavelet.replace(b"\xff\x52\x00\x0c\x00\x00\x00\x01", b"\xff\x52\x00\x0c\x00\x00\xff\xff")],
            JPEG2000Lossless,
            like=colour,
        ),
        "frames-999999999999": coded([colour], ExplicitVRLittleEndian, NumberOfFrames="999999999999"),
        "a-frame-too-many": coded([colour] * 2, JPEGBaseline8Bit, NumberOfFrames=1, **jpeg),
        "offset-table-beyond-the-end": coded([colour] * 2, JPEGBaseline8Bit, PixelData=bytes(table), **jpeg),
        "nested-5000-deep": plain[:start] + b"\x40\x00\x30\xa7\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5_000,
        "deflated-40-megabytes": bomb,
    }


def attack(count: int, seed: int = 6) -> dict[str, object]:
    """Push the mutants through; how many came out how, the slowest, and the most memory the process held, in bytes."""
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = (0.0, "")
    for number, (name, data) in enumerate(mutants(count, seed)):
        began = time.perf_counter()
        for way in (image.prepare, _identity, _frames):
            try:
                way(data)
                outcomes["accepted"] += 1
            except ImageError as error:
                outcomes[error.code] += 1
            except BaseException:
                sys.stderr.write(f"mutant {number}: {name}\n")
                raise
        slowest = max(slowest, (time.perf_counter() - began, f"{number}: {name}"))
    # Of this program alone: what `getrusage` tells begins with the size of the process that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    return {"outcomes": dict(outcomes), "seconds": slowest[0], "slowest": slowest[1], "peak": peak}


def _identity(data: bytes) -> None:
    dicom.identity(data, with_patient=True)


def _frames(data: bytes) -> None:
    """Each frame that is given away must be one that can be judged alone, whatever the judgement."""
    for one in dicom.frames(data):
        try:
            image.prepare(one)
        except ImageError:
            continue


if __name__ == "__main__":
    if sys.argv[1] == "corpus":
        for name, data in interesting().items():
            (_CORPUS / f"{name}.dcm").write_bytes(data)
        sys.exit()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.write(json.dumps(attack(int(sys.argv[1]), *map(int, sys.argv[2:]))) + "\n")
