"""`image.prepare` for batches, with decoding and resizing on an NVIDIA GPU by DALI, which NVIDIA's container holds.

The GPU takes what most senders send: JPEGs in YCbCr or grey below 1,200 pixels a side, upright, without a colour profile.
All others go through `image.prepare`, and so does every image that a GPU decoder refuses: what it says decides.

GPU decoders fill in what a damaged stream lacks. Before the GPU sees an image, libjpeg therefore reads its whole
stream on the CPU, strictly, at an eighth of its size, which is less than half the work of decoding it.

Pixels differ from the CPU's by rounding, so scores drift; see docs/decoding.md. DALI is imported when a `Preparer` is
made, not with this module.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dermserve import colour, crop, image, jpeg
from dermserve.errors import ImageError, StartupError
from dermserve.image import SIDE, Prepared, Region

_PLAIN: Final = {"YCbCr": ("444", "422", "420"), "Gray": ("Gray",)}
"""Colour spaces and subsamplings that every generation of decoders takes."""


class Preparer:
    """Prepares batches of encoded images; one thread at a time may call it.

    Args:
        device_id: number of the GPU; None runs the same graphs on the CPU, for tests.
        batch: the most images of one call.
        threads: CPU threads for the check, for what the GPU does not take, and for DALI.

    Raises:
        StartupError: DALI is not installed, or it finds no GPU.
    """

    def __init__(self, *, device_id: int | None, batch: int, threads: int) -> None:
        try:
            self._dali: Any = import_module("nvidia.dali")
        except ImportError as error:
            raise StartupError("NVIDIA DALI is not installed: images are prepared on the CPU.") from error
        self._options = {"batch_size": batch, "num_threads": threads, "device_id": device_id, "prefetch_queue_depth": 1}
        self._pool = ThreadPoolExecutor(threads)
        try:
            self._build()
        except RuntimeError as error:
            raise StartupError(f"DALI finds no GPU: images are prepared on the CPU. ({_first_line(error)})") from error
        self.failures = 0

    def __call__(self, images: Sequence[bytes]) -> list[Prepared | ImageError]:
        """Prepare each image, or say why it is refused: the result or error that `image.prepare` would give."""
        results = list(self._pool.map(_refused_or_left, images))
        left = [index for index, result in enumerate(results) if result is None]
        if left:
            chosen = [images[index] for index in left]
            try:
                done: Sequence[Prepared | ImageError] = self._run(chosen)
            except RuntimeError:  # one image that DALI refuses fails the batch, and DALI's graphs are then invalid
                self.failures += 1
                done = list(self._pool.map(on_cpu, chosen))
                self._build()
            for index, result in zip(left, done, strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _run(self, images: Sequence[bytes]) -> list[Prepared]:
        shapes = [jpeg.dimensions(data)[::-1] for data in images]
        steps = [crop.step(height, width) for height, width in shapes]
        grids = [np.ceil(np.array(shape) / step) for shape, step in zip(shapes, steps, strict=True)]
        # Nearest neighbour, half a step off: that picks the very pixels of `[::step, ::step]`.
        starts = [np.full(2, 0.5 - step / 2) for step in steps]
        ends = [start + step * grid for start, step, grid in zip(starts, steps, grids, strict=True)]
        self._decoding.feed_input("jpeg", [np.frombuffer(data, np.uint8) for data in images])
        _feed(self._decoding, grid=grids, start=starts, end=ends)
        whole, sampled = self._decoding.run()
        boxes = [crop.frame_of(np.array(seen), *shape) for seen, shape in zip(sampled.as_cpu(), shapes, strict=True)]
        self._cropping.feed_input("pixels", whole)
        _feed(
            self._cropping,
            start=[np.array((top, left)) for left, top, _, _ in boxes],
            end=[np.array((bottom, right)) for _, _, right, bottom in boxes],
        )
        (resized,) = self._cropping.run()
        pixels: NDArray[np.uint8] = resized.as_cpu().as_array()
        return [
            Prepared(one, Region(left / width, top / height, right / width, bottom / height))
            for one, (left, top, right, bottom), (height, width) in zip(pixels, boxes, shapes, strict=True)
        ]

    def _build(self) -> None:
        fn, types, on_gpu = self._dali.fn, self._dali.types, self._options["device_id"] is not None

        @self._dali.pipeline_def  # type: ignore[untyped-decorator]
        def decoding() -> Any:
            whole = fn.decoders.image(
                _input(self._dali, "jpeg", types.UINT8),
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # as libjpeg does
            )
            start, end, grid = (_input(self._dali, name, types.FLOAT) for name in ("start", "end", "grid"))
            sampled = fn.resize(whole, size=grid, roi_start=start, roi_end=end, interp_type=types.INTERP_NN)
            return whole, sampled

        @self._dali.pipeline_def  # type: ignore[untyped-decorator]
        def cropping() -> Any:
            pixels = fn.external_source(
                name="pixels", device="gpu" if on_gpu else "cpu", dtype=types.UINT8, layout="HWC"
            )
            start, end = (_input(self._dali, name, types.FLOAT) for name in ("start", "end"))
            return fn.resize(
                pixels, size=[SIDE, SIDE], roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR, antialias=True
            )

        self._decoding, self._cropping = decoding(**self._options), cropping(**self._options)
        self._decoding.build()
        self._cropping.build()


def _refused_or_left(data: bytes) -> Prepared | ImageError | None:
    """None for an image that is whole and left for the GPU; for every other what the CPU makes of it."""
    try:
        if image.inspect(data).format == "jpeg" and _is_plain(data):
            simplejpeg.decode_jpeg(data, colorspace="GRAY", min_width=1, min_height=1, strict=True)  # at an eighth
            return None
    except Exception:  # noqa: S110  `image.prepare` names the error
        pass
    return on_cpu(data)


def on_cpu(data: bytes) -> Prepared | ImageError:
    """What `image.prepare` makes of an image: the result, or the error as a value."""
    try:
        return image.prepare(data)
    except ImageError as error:
        return error


def _is_plain(data: bytes) -> bool:
    height, width, space, subsampling = simplejpeg.decode_jpeg_header(data)
    if subsampling not in _PLAIN.get(space, ()) or image.divisor(min(height, width)) != 1:
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
        return (
            opened.size == (width, height)
            and opened.info.get("icc_profile") is None
            and colour.orientation(opened) is None
        )


def _input(dali: Any, name: str, dtype: Any) -> Any:
    return dali.fn.external_source(name=name, device="cpu", dtype=dtype, ndim=1)


def _feed(pipeline: Any, **values: list[NDArray[Any]]) -> None:
    for name, arrays in values.items():
        pipeline.feed_input(name, [array.astype(np.float32) for array in arrays])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
