"""`dermserve bench decode`: what decoding costs at each size, and what decoding at a reduced size does to a score."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks import report
from dermserve.errors import StartupError
from dermserve.settings import Settings

SIZES: Final = ((600, 450), (1024, 768), (1920, 1440), (3000, 2000), (6000, 4000))
PHOTOGRAPH: Final = (4000, 3000)
_MEGAPIXELS_12: Final = 12_000_000
_NOISE: Final = 3.0  # grey levels: what a sensor adds, and enlarging a small image does not
_TILE: Final = 1000  # pixels
_AHEAD: Final = 8  # photographs

Figures = dict[str, dict[str, Any]]


@click.command()
@click.option(
    "--images", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of real JPEGs, enlarged to 12 megapixels; may be given several times.",
)  # fmt: skip
@click.option("--most", default=150, show_default=True, type=click.IntRange(1), help="Images of each folder.")
@click.option("--drawn", default=60, show_default=True, type=click.IntRange(1), help="Drawn lesions at 4000×3000.")
@click.option("--repeats", default=15, show_default=True, type=click.IntRange(1), help="Of each timing.")
@click.option(
    "--dali", type=click.Choice(["cpu", "gpu"]),
    help="Also compare the container's preprocess (DALI) with the CPU's, on this device.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=report.RESULTS,
    help="Folder for the results.  [default: benchmarks/results]",
)  # fmt: skip
def decode(*, images: tuple[Path, ...], most: int, drawn: int, repeats: int, dali: str | None, out: Path) -> None:
    """Time `prepare` from small to large JPEGs, and compare scores after reduced and whole decoding.

    Milliseconds are processor time of one thread. Scores are the served network's melanoma probability.

    \b
    Examples:
      dermserve bench decode
      dermserve bench decode --images ../shared/data/load --images ../shared/data/isic2017-test/images
      dermserve bench decode --dali gpu
    """
    on = report.machine()
    pictures = {_name(folder): _jpegs(folder)[:most] for folder in images}
    read = _reader(Settings().model_repository)
    timed = costs(repeats)
    report.show_all("Processor time per JPEG (ms)", timed)
    drifts = {}
    for name, paths in pictures.items():
        jobs = [
            partial(lambda path, seed: enlarged(path.read_bytes(), seed), path, seed) for seed, path in enumerate(paths)
        ]
        drifts[f"{name}, enlarged"] = differences(_made(jobs, f"{name}, enlarged"), read)
    jobs = [partial(photograph, seed, *PHOTOGRAPH) for seed in range(drawn)]
    drifts["drawn at 4000×3000"] = differences(_made(jobs, "drawn"), read)
    summary = {name: summarise(found) for name, found in drifts.items()}
    _show("Reduced against whole decoding: difference of the melanoma probability", summary)
    figures: dict[str, Any] = {"milliseconds": timed, "threads": scaling(), "drift": summary}
    if dali:
        small = {name: [path.read_bytes() for path in paths] for name, paths in pictures.items()}
        small["drawn at 600×450"] = [photograph(seed, 600, 450) for seed in range(drawn)]
        against = {name: _dali(data, read, dali) for name, data in small.items()}
        _show(f"DALI on the {dali} against the CPU's prepare", against)
        figures["dali"] = {"device": dali, **against}
    click.echo(f"written: {report.write(out / 'decode.json', figures, on)}")
    click.echo(f"written: {plot(timed, drifts, out / 'decode.png')}")


def costs(repeats: int) -> Figures:
    """Milliseconds of processor time for one JPEG of each size, the least of `repeats`: decoded whole, and prepared."""
    from dermserve import image

    found: Figures = {}
    for width, height in SIZES:
        data = photograph(0, width, height)
        ways: dict[str, Callable[[], object]] = {
            "decode whole": lambda data=data: image.decode(data),  # type: ignore[misc]
            "prepare from whole": lambda data=data: image.fit(image.decode(data)),  # type: ignore[misc]
            "prepare": lambda data=data: image.prepare(data),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, work in ways.items():  # in turn, so that a change of the machine's speed meets all
                start = time.process_time()
                work()
                if turn:  # the first warms up
                    times[name].append((time.process_time() - start) * 1000)
        row = {name: round(min(values), 2) for name, values in times.items()}
        found[f"{width}×{height}"] = {
            "kilobytes": len(data) // 1000, **row, "ratio": round(row["prepare from whole"] / row["prepare"], 2)
        }  # fmt: skip
    return found


def scaling(seconds: float = 3.0) -> dict[str, float]:
    """Images/s of `prepare` at 600×450 on one thread and on two, by the clock: whether all of it releases the GIL."""
    from benchmarks.limit import rate
    from dermserve import image

    data = photograph(0, 600, 450)
    rates = [(rate(lambda *_: image.prepare(data), 1, seconds), rate(lambda *_: image.prepare(data), 2, seconds))
             for _ in range(3)]  # fmt: skip
    one, two = (float(np.median(values)) for values in zip(*rates, strict=True))
    return {"one": round(one, 1), "two": round(two, 1), "ratio": round(two / one, 2)}


def photograph(seed: int, width: int, height: int) -> bytes:
    """A drawn lesion as a camera would send it: sensor noise, 4:2:0, quality 92."""
    from dermserve import sample

    return _camera(sample.draw(seed), width, height, seed)


def enlarged(data: bytes, seed: int) -> bytes:
    """A real image enlarged to 12 megapixels, with a sensor's noise, encoded as a camera does.

    It holds no more detail than before; noise stands in for what a real photograph has beyond it.
    """
    from dermserve import image

    pixels = image.decode(data)
    scale = (_MEGAPIXELS_12 / (pixels.shape[0] * pixels.shape[1])) ** 0.5
    return _camera(pixels, round(pixels.shape[1] * scale), round(pixels.shape[0] * scale), seed)


def _camera(pixels: NDArray[np.uint8], width: int, height: int, seed: int) -> bytes:
    from PIL import Image

    large = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    tile = np.random.default_rng(seed).normal(0, _NOISE, (_TILE, _TILE, 3)).round().astype(np.int16)
    for top in range(0, height, _TILE):  # the same noise again and again: drawing 36 million values takes a second
        for left in range(0, width, _TILE):
            part = large[top : top + _TILE, left : left + _TILE]
            part += tile[: part.shape[0], : part.shape[1]]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92, subsampling=2)
    return buffer.getvalue()


def _made(jobs: Sequence[Callable[[], bytes]], label: str) -> Iterator[bytes]:
    """The photographs in order, made by all cores, a few at a time: they are large."""
    with ThreadPoolExecutor() as pool, Progress(transient=True) as progress:
        task = progress.add_task(label, total=len(jobs))
        for start in range(0, len(jobs), _AHEAD):
            for data in pool.map(lambda job: job(), jobs[start : start + _AHEAD]):
                yield data
                progress.advance(task)


Read = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From prepared pixels to the melanoma probability, the abstention distance and the four quality scores, float32 [6]."""


def _reader(repository: Path) -> Read:
    from dermserve import engine, quality

    loaded = engine.load(repository)

    def read(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer = loaded.infer(pixels[None])
        return np.concatenate([answer["probabilities"][0, 3:], answer["ood"][0], quality.measure(pixels)])

    return read


def differences(photographs: Iterable[bytes], read: Read) -> NDArray[np.float32]:
    """What is read after whole and after reduced decoding, float32 [N, 2, 6]."""
    from dermserve import image

    return np.array(
        [(read(image.fit(image.decode(data)).pixels), read(image.prepare(data).pixels)) for data in photographs]
    )


def summarise(read: NDArray[np.float32]) -> dict[str, Any]:
    """Mean, 95th percentile and largest |Δp| of melanoma, and on how many images what a user is told changes.

    `read`: [N, 2, 6], as from `differences`.
    """
    from dermserve.labels import QUALITY_FLAGS
    from dermserve.model_card import ModelCard

    settings = Settings()
    card = ModelCard.read(settings.model_repository)
    drift = np.abs(read[:, 0, 0] - read[:, 1, 0]).astype(np.float64)
    refer = read[..., 0] >= card.operating_point(settings.operating_point).threshold
    abstained = read[..., 1] > card.ood.thresholds["ood"]
    flagged = read[..., 2:] >= [card.quality.thresholds[name] for name in QUALITY_FLAGS]
    return {
        "images": len(drift),
        "mean": round(float(drift.mean()), 5),
        "p95": round(float(np.percentile(drift, 95)), 5),
        "max": round(float(drift.max()), 5),
        "referrals changed": int((refer[:, 0] != refer[:, 1]).sum()),
        "abstentions changed": int((abstained[:, 0] != abstained[:, 1]).sum()),
        "flags changed": int((flagged[:, 0] != flagged[:, 1]).any(axis=1).sum()),
    }


def _show(title: str, rows: Figures) -> None:
    """Like `report.show_all`, with five decimals: drifts are small."""
    report.show_all(title, {
        name: {key: f"{value:.5f}" if isinstance(value, float) else value for key, value in row.items()}
        for name, row in rows.items()
    })  # fmt: skip


def _dali(images: Sequence[bytes], read: Read, device: str) -> dict[str, Any]:
    from dermserve import gpu, image
    from dermserve.image import Prepared

    prepare = gpu.Preparer(device_id=0 if device == "gpu" else None, batch=16, threads=2)
    pairs, levels = [], []
    for start in range(0, len(images), 16):
        chunk = images[start : start + 16]
        for data, other in zip(chunk, prepare(chunk), strict=True):
            here = image.prepare(data)
            if not isinstance(other, Prepared):
                raise StartupError(f"DALI's way refused an image that the CPU's accepts: {other}")
            pairs.append((read(here.pixels), read(other.pixels)))
            levels.append(np.abs(here.pixels.astype(int) - other.pixels))
    return {**summarise(np.array(pairs)), "largest grey level": int(np.max(levels)),
            "mean grey level": round(float(np.mean(levels)), 3), "batches refused": prepare.failures}  # fmt: skip


def _name(folder: Path) -> str:
    whole = folder.resolve()
    return whole.parent.name if whole.name == "images" else whole.name


def _jpegs(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise StartupError(f"There is no JPEG in {folder}.")
    return found


def plot(timed: Mapping[str, Mapping[str, Any]], drifts: Mapping[str, NDArray[np.float32]], path: Path) -> Path:
    """Draw the cost at each size, and the share of images whose score drifts by more than what the axis says."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    cost, drift = figure.subplots(1, 2)
    places = np.arange(len(timed))
    for offset, name in ((-0.2, "prepare from whole"), (0.2, "prepare")):
        cost.bar(places + offset, [row[name] for row in timed.values()], 0.4, label=name)
    cost.set(yscale="log", ylabel="processor time per image (ms)", xticks=places, xticklabels=list(timed))
    cost.tick_params(axis="x", labelsize=8)
    cost.legend()
    for name, scores in drifts.items():
        ordered = np.sort(np.abs(scores[:, 0, 0] - scores[:, 1, 0]))[::-1]
        drift.step(np.maximum(ordered, 1e-6), np.arange(1, len(ordered) + 1) / len(ordered), label=name)
    drift.set(xscale="log", xlabel="|Δp| of melanoma, reduced against whole decoding", ylabel="share of images above")
    drift.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
