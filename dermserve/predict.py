"""`dermserve predict`: score files and folders through Triton into a CSV in the contract's form."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dermserve.client import AsyncTritonClient
from dermserve.errors import ImageError, ImageTooLarge, InferenceUnavailable, Overloaded, RequestInvalid
from dermserve.image import MAX_BYTES
from dermserve.labels import CSV_HEADER
from dermserve.settings import Settings

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
ERRORS_HEADER = ("filename", "code", "detail")
_BUSY_PAUSE_S = 1.0


class Input(NamedTuple):
    """`name` is what the CSV says: the path below the folder that was given, or the file's own name."""

    name: str
    path: Path


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--csv", "output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--url", help="Triton's gRPC, host:port[,host:port…]; default: DERMSERVE_TRITON_URL, else the local one.")
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1, 256), help="Images in flight.")
@click.option("--resume", is_flag=True, help="Keep the rows that the file already holds and do the rest.")
def predict(paths: tuple[Path, ...], output: Path, url: str | None, concurrency: int, resume: bool) -> None:
    """Score images and folders of images; one row each, in the order given (folders by name, with subfolders).

    Images that are refused go to a second file, *.errors.csv, and make the exit status 1.
    Rows are written as they come; after an interruption, the same command with --resume continues.

    \b
    Examples:
      dermserve predict lesions/ --csv out.csv
      dermserve predict a.jpg b.png scan.dcm --csv out.csv --url triton-1:8001,triton-2:8001
      dermserve predict archive/ --csv out.csv --concurrency 64 --resume
    """
    urls = _addresses(url) if url else Settings().triton_urls
    inputs = find_inputs(paths)
    results = _Table(output, CSV_HEADER, resume)
    errors = _Table(errors_path(output), ERRORS_HEADER, resume)
    done = results.names | errors.names
    todo = [item for item in inputs if item.name not in done]
    if resume:
        click.echo(f"{len(inputs) - len(todo)} of {len(inputs)} images are done already.", err=True)
    start = time.monotonic()
    try:
        asyncio.run(_run(todo, urls, concurrency, results, errors))
    except InferenceUnavailable as error:
        raise InferenceUnavailable(
            f"No Triton answers at {', '.join(urls)}: start `dermserve serve`, or give --url. "
            f"{results.count} rows are in {output}; continue with --resume."
        ) from error
    finally:
        results.close()
        errors.close()
    elapsed = time.monotonic() - start
    click.echo(
        f"{len(todo)} images in {elapsed:.1f} s: {len(todo) / max(elapsed, 1e-9):.1f} images/s; "
        f"{results.count} rows in {output}" + (f", {errors.count} refused, see {errors.path}" if errors.count else "")
    )
    if errors.count:
        raise click.exceptions.Exit(1)


def errors_path(output: Path) -> Path:
    """`out.csv` → `out.errors.csv`, beside it."""
    return output.with_name(f"{output.name.removesuffix('.csv')}.errors.csv")


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    """The images to score, in order.

    Raises:
        RequestInvalid: a folder holds no image, or two inputs would have the same name in the CSV.
    """
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise RequestInvalid(f"{path} holds no image ({', '.join(SUFFIXES)}).")
            found += [Input(file.relative_to(path).as_posix(), file) for file in files]
        else:
            found.append(Input(path.name, path))
    seen: dict[str, Path] = {}
    for item in found:
        if item.name in seen:
            raise RequestInvalid(
                f"{seen[item.name]} and {item.path} would both be called {item.name!r} in the CSV; "
                "give a folder that holds both."
            )
        seen[item.name] = item.path
    return found


def _addresses(url: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in url.split(",") if part.strip())
    if not parts or any("/" in part or ":" not in part for part in parts):
        raise RequestInvalid("--url takes Triton's gRPC addresses, host:port[,host:port…].")
    return parts


async def _run(inputs: Sequence[Input], urls: Sequence[str], concurrency: int, results: _Table, errors: _Table) -> None:
    client = AsyncTritonClient(urls)
    columns = (
        TextColumn("Scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task, start = progress.add_task("", total=len(inputs), rate=0.0), time.monotonic()
            async for item, outcome in _in_order(client, inputs, concurrency):
                if isinstance(outcome, ImageError):
                    errors.write((item.name, outcome.code, outcome.detail))
                else:
                    results.write((item.name, *(f"{value:.6f}" for value in outcome)))
                finished = progress.tasks[0].completed + 1
                progress.update(task, advance=1, rate=finished / (time.monotonic() - start))
    finally:
        await client.close()


async def _in_order(
    client: AsyncTritonClient, inputs: Sequence[Input], concurrency: int
) -> AsyncIterator[tuple[Input, Sequence[float] | ImageError]]:
    """Keep `concurrency` images in flight and yield the outcomes in the order of the inputs."""
    slots = asyncio.Semaphore(concurrency)
    # Twice as many started as may run: a slow image at the head does not leave a slot empty behind it.
    started: deque[tuple[Input, asyncio.Task[Sequence[float] | ImageError]]] = deque()
    waiting = iter(inputs)
    try:
        while True:
            while len(started) < 2 * concurrency and (item := next(waiting, None)) is not None:
                started.append((item, asyncio.create_task(_score(client, item, slots))))
            if not started:
                return
            item, task = started[0]
            outcome = await task
            started.popleft()
            yield item, outcome
    finally:
        for _, task in started:
            task.cancel()
        await asyncio.gather(*(task for _, task in started), return_exceptions=True)


async def _score(client: AsyncTritonClient, item: Input, slots: asyncio.Semaphore) -> Sequence[float] | ImageError:
    async with slots:
        try:
            data = await asyncio.to_thread(_read, item.path)
            while True:
                try:
                    answer = await client.infer([data], ["probabilities"], bulk=True)
                except Overloaded:
                    await asyncio.sleep(_BUSY_PAUSE_S)
                else:
                    return [float(value) for value in answer["probabilities"][0]]
        except ImageError as error:
            return error


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ImageTooLarge(f"The file is {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are accepted.")
    return path.read_bytes()


class _Table:
    """A CSV file that grows row by row; each row reaches the operating system before the next image is scored.

    Made on the first row where nothing is there to keep, so that a run without errors leaves no errors file.
    """

    def __init__(self, path: Path, header: tuple[str, ...], resume: bool) -> None:
        self.path = path
        self.names: set[str] = set()
        self._header = header
        self._file: io.TextIOWrapper | None = None
        if resume and path.exists():
            self._keep()
        else:
            path.unlink(missing_ok=True)
            if header == CSV_HEADER:
                self._open()

    @property
    def count(self) -> int:
        return len(self.names)

    def write(self, row: tuple[str, ...]) -> None:
        """Append one row."""
        if self._file is None:
            self._open()
        assert self._file is not None
        csv.writer(self._file, lineterminator="\n").writerow(row)
        self._file.flush()
        self.names.add(row[0])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        self._file = self.path.open("w", newline="", encoding="utf-8")
        csv.writer(self._file, lineterminator="\n").writerow(self._header)
        self._file.flush()

    def _keep(self) -> None:
        """Read what is there, less a last line that an interruption cut short."""
        text = self.path.read_bytes().decode()
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.reader(io.StringIO(whole, newline="")))
        if rows and tuple(rows[0]) != self._header:
            raise RequestInvalid(f"{self.path} is not a file that this command wrote; nothing was changed.")
        self.names = {row[0] for row in rows[1:]}
        self._file = self.path.open("r+", newline="", encoding="utf-8")
        self._file.truncate(len(whole.encode()))
        self._file.seek(0, io.SEEK_END)
        if not rows:
            csv.writer(self._file, lineterminator="\n").writerow(self._header)
