"""`dermserve predict`: score files and folders through Triton into a CSV in the contract's form."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dermserve.client import AsyncTritonClient
from dermserve.errors import (
    ImageError,
    ImageTooLarge,
    InferenceUnavailable,
    Overloaded,
    RequestInvalid,
    StartupError,
    UnreadableFile,
)
from dermserve.image import MAX_BYTES
from dermserve.labels import CSV_HEADER
from dermserve.model_card import ModelCard
from dermserve.settings import Settings

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
ERRORS_HEADER = ("filename", "code", "detail")
ABSTAINED_HEADER = ("filename", "ood", "threshold")
_BUSY_PAUSE_S = 1.0
_GIVE_UP_AFTER_S = 300.0  # a busy server answers something in that time; one that hangs never will


class Scores(NamedTuple):
    """The four probabilities, and the distance to the training images."""

    probabilities: Sequence[float]
    ood: float


Outcome = Scores | ImageError  # the latter: why there are no scores


class Input(NamedTuple):
    """`name` is what the CSV says: the path below the folder that was given, or the file's own name, as UTF-8."""

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

    Images that are refused go to a second file, *.errors.csv, and make the exit status 1. Images that look like no
    dermoscopy photograph have a row, because all readable ones do, but their probabilities mean nothing: a third file,
    *.abstained.csv, names them. Its threshold is that of this installation's model card, which should be the server's.
    Rows are written as they come; after an interruption, the same command with --resume continues.
    Without --resume, the first row replaces what an earlier run left.

    \b
    Examples:
      dermserve predict lesions/ --csv out.csv
      dermserve predict a.jpg b.png scan.dcm --csv out.csv --url triton-1:8001,triton-2:8001
      dermserve predict archive/ --csv out.csv --concurrency 64 --resume
    """
    urls = _addresses(url) if url else Settings().triton_urls
    inputs = find_inputs(paths)
    written = _Output(output, resume, _abstains_above())
    if written.unchecked:
        click.echo(
            f"Whether the {written.unchecked} rows that are kept mean anything was not looked at when they were written "
            f"({_text(written.abstained.path)} is missing); without --resume it will be.",
            err=True,
        )
    done = written.results.names | written.errors.names
    todo = [item for item in inputs if item.name not in done]
    if resume:
        click.echo(f"{len(inputs) - len(todo)} of {len(inputs)} images are done already.", err=True)
    start = time.monotonic()
    try:
        asyncio.run(_run(todo, urls, concurrency, written))
    except InferenceUnavailable as error:
        missing = f"No Triton answers at {', '.join(urls)}: start `dermserve serve`, or give --url."
        reason = missing if error.detail == error.title else error.detail
        raise InferenceUnavailable(f"{reason} {written.left()}") from error
    except OSError as error:  # of the two tables: an image that cannot be read is a row
        raise RequestInvalid(f"{_text(output)} cannot be written: {error.strerror}. {written.left()}") from error
    finally:
        written.close()
    elapsed, refused, doubted = time.monotonic() - start, written.errors, written.abstained
    click.echo(
        f"{len(todo)} images in {elapsed:.1f} s: {len(todo) / max(elapsed, 1e-9):.1f} images/s; "
        f"{len(written.results.names)} rows in {_text(output)}"
        + (f", {len(doubted.names)} of them abstained on, see {_text(doubted.path)}" if doubted.names else "")
        + (f", {len(refused.names)} refused, see {_text(refused.path)}" if refused.names else "")
    )
    if refused.names:
        raise click.exceptions.Exit(1)


def errors_path(output: Path) -> Path:
    """`out.csv` → `out.errors.csv`, beside it."""
    return _beside(output, "errors")


def abstained_path(output: Path) -> Path:
    """`out.csv` → `out.abstained.csv`, beside it."""
    return _beside(output, "abstained")


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f"{output.name.removesuffix('.csv')}.{what}.csv")


def _abstains_above() -> float | None:
    """The threshold on `ood` of this installation's model card; None, with a line that says so, where there is none."""
    try:
        ood = ModelCard.read(Settings().model_repository).ood
    except StartupError as error:
        click.echo(f"Nothing is abstained on, because no threshold is known: {error.detail}", err=True)
        return None
    return ood.thresholds["ood"] if ood.measured else None


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    """The images to score, in order.

    Raises:
        RequestInvalid: a folder holds no image, or two inputs would have the same name in the CSV.
    """
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and _is_file(file))
            if not files:
                raise RequestInvalid(f"{path} holds no image ({', '.join(SUFFIXES)}).")
            found += [Input(_text(file.relative_to(path)), file) for file in files]
        else:
            found.append(Input(_text(path.name), path))
    seen: dict[str, Path] = {}
    for item in found:
        if item.name in seen:
            raise RequestInvalid(
                f"{seen[item.name]} and {item.path} would both be called {item.name!r} in the CSV; "
                "give a folder that holds both."
            )
        seen[item.name] = item.path
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True  # reading it says why not


def _text(path: Path | str) -> str:
    """A path may hold any byte but zero; what is no UTF-8 is written as \\xff, so that every name can be written."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _addresses(url: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in url.split(",") if part.strip())
    if not parts or any("/" in part or ":" not in part for part in parts):
        raise RequestInvalid("--url takes Triton's gRPC addresses, host:port[,host:port…].")
    return parts


async def _run(inputs: Sequence[Input], urls: Sequence[str], concurrency: int, written: _Output) -> None:
    client = AsyncTritonClient(urls)
    rate = TextColumn("{task.fields[rate]:.1f} images/s")
    columns = (TextColumn("Scoring"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task, start = progress.add_task("", total=len(inputs), rate=0.0), time.monotonic()
            async for item, outcome in _in_order(client, inputs, concurrency):
                written.add(item.name, outcome)
                finished = progress.tasks[0].completed + 1
                progress.update(task, advance=1, rate=finished / (time.monotonic() - start))
        written.begin()
    finally:
        await client.close()


async def _in_order(
    client: AsyncTritonClient, inputs: Sequence[Input], concurrency: int
) -> AsyncIterator[tuple[Input, Outcome]]:
    """Keep `concurrency` images in flight and yield the outcomes in the order of the inputs."""
    slots, patience = asyncio.Semaphore(concurrency), _Patience()
    # Twice as many started as may run: a slow image at the head does not leave a slot empty behind it.
    started, waiting = deque[tuple[Input, asyncio.Task[Outcome]]](), iter(inputs)
    try:
        while True:
            while len(started) < 2 * concurrency and (item := next(waiting, None)) is not None:
                started.append((item, asyncio.create_task(_score(client, item.path, slots, patience))))
            if not started:
                return
            item, task = started[0]
            yield item, await task
            started.popleft()
    finally:
        for _, task in started:
            task.cancel()
        await asyncio.gather(*(task for _, task in started), return_exceptions=True)


class _Patience:
    """Since when all calls have failed; one answer, to whichever image, starts it anew."""

    since: float | None = None

    def failed(self) -> None:
        """Raises InferenceUnavailable when it has lasted too long."""
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since >= _GIVE_UP_AFTER_S:
            raise InferenceUnavailable(f"Triton has answered no request for {_GIVE_UP_AFTER_S / 60:.0f} minutes.")


async def _score(client: AsyncTritonClient, path: Path, slots: asyncio.Semaphore, patience: _Patience) -> Outcome:
    async with slots:
        try:
            data = await asyncio.to_thread(_read, path)
        except ImageError as error:
            return error
        while True:
            try:
                answer = await client.infer([data], ["probabilities", "ood"], bulk=True)
            except Overloaded:
                patience.failed()
                await asyncio.sleep(_BUSY_PAUSE_S)
                continue
            except ImageError as error:
                patience.since = None
                return error
            patience.since = None
            return Scores(answer["probabilities"][0].tolist(), float(answer["ood"][0, 0]))


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageTooLarge(f"The file is {size:,} bytes; at most {MAX_BYTES:,} are accepted.")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"The file cannot be read: {error.strerror}.") from error


class _Output:
    """The results and, beside them, what was refused and what was abstained on: three tables that belong together.

    What an earlier run left stays whole until `begin`, which the first result calls: a server that answers nothing
    must not cost anybody their results. RequestInvalid where a table cannot stand, or is not one of this command's.
    """

    def __init__(self, path: Path, resume: bool, abstains_above: float | None) -> None:
        if not path.parent.is_dir():
            raise RequestInvalid(f"{_text(path)} cannot be written: there is no folder {_text(path.parent)}.")
        self.results = _Table(path, CSV_HEADER, resume)
        self.errors = _Table(errors_path(path), ERRORS_HEADER, resume)
        self.abstained = _Table(abstained_path(path), ABSTAINED_HEADER, resume)
        self._abstains_above = abstains_above
        self._waiting: list[tuple[str, ...]] = []  # refusals, while to write them would cost an earlier run's tables
        self.unchecked = 0
        if resume and abstains_above is not None and not self.abstained.path.exists():
            self.unchecked = len(self.results.names)
        # A mark is written before its row; one without a row was left by an interruption, and its image comes again.
        self.abstained.cut_last_unless(self.results.names)
        tables = (self.results, self.errors, self.abstained)
        self._replaces = not resume and any(table.path.exists() for table in tables)
        self._begun = False

    def add(self, name: str, outcome: Outcome) -> None:
        """Write the row of one image."""
        if isinstance(outcome, ImageError):
            self._waiting.append((name, outcome.code, outcome.detail))
            if self._begun or not self._replaces:
                self.begin()
        else:
            self.begin()
            # First: were the row there alone, an interruption would leave figures that mean nothing unmarked.
            if (
                self._abstains_above is not None
                and outcome.ood > self._abstains_above
                and name not in self.abstained.names
            ):
                self.abstained.write((name, f"{outcome.ood:.6f}", f"{self._abstains_above:.6f}"))
            self.results.write((name, *(f"{value:.6f}" for value in outcome.probabilities)))

    def begin(self) -> None:
        """Open the tables, once, and write the refusals that waited for it."""
        if not self._begun:
            self.results.open()
            # An empty table of marks says that they were looked for; an empty one of refusals would say nothing.
            looked_for = self._abstains_above is not None and not self.unchecked
            for table, kept in ((self.errors, False), (self.abstained, looked_for)):
                table.open() if table.names or kept else table.path.unlink(missing_ok=True)
            self._begun = True
        while self._waiting:
            self.errors.write(self._waiting.pop(0))

    def left(self) -> str:
        """What a run that fails leaves, for its last line."""
        if not self.results.names | self.errors.names:
            return "Nothing was written."
        return f"{len(self.results.names)} rows are in {_text(self.results.path)}; continue with --resume."

    def close(self) -> None:
        for table in (self.results, self.errors, self.abstained):
            table.close()


class _Table:
    """A CSV file that grows row by row; each row reaches the operating system before the next image is scored."""

    def __init__(self, path: Path, header: tuple[str, ...], resume: bool) -> None:
        self.path = path
        self._header = header
        self._file: io.TextIOWrapper | None = None
        data, own = path.read_bytes() if path.is_file() else b"", ",".join(header).encode()
        first, end, _ = data.partition(b"\n")
        if not (first.rstrip(b"\r") == own if end else own.startswith(first)):
            raise RequestInvalid(f"{_text(path)} is not a file that this command wrote; nothing was changed.")
        self._keep(data[: data.rfind(b"\n") + 1] if resume else b"")  # less a last line that an interruption cut short

    def _keep(self, data: bytes) -> None:
        self._kept = data
        rows = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""))
        self._rows = [row[0] for row in rows if row and tuple(row) != self._header]
        self.names = set(self._rows)

    def cut_last_unless(self, names: set[str]) -> None:
        """Keep the last row only if `names` holds its first cell."""
        if self._rows and self._rows[-1] not in names:
            self._keep(self._kept[: self._kept[:-1].rfind(b"\n") + 1])

    def open(self) -> io.TextIOWrapper:
        """Go on after the rows that are kept, or start the file anew."""
        self._file = self.path.open("a", newline="", encoding="utf-8")
        if self.path.is_file():
            self._file.truncate(len(self._kept))
        if not self._kept:
            self._file.write(",".join(self._header) + "\n")
            self._file.flush()
        return self._file

    def write(self, row: tuple[str, ...]) -> None:
        """Append one row; opens a table that is not open yet."""
        file = self._file or self.open()
        csv.writer(file, lineterminator="\n").writerow(row)
        file.flush()
        self.names.add(row[0])

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a row that a full disk refused was reported when it was written
                self._file.close()
