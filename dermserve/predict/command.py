"""The command line of `dermserve predict`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click

from dermserve.errors import Forbidden, MethodNotAllowed, NotFound, RequestInvalid, StartupError, Unauthenticated
from dermserve.model_card import ModelCard
from dermserve.predict import api, inputs
from dermserve.predict.doors import Door, TritonDoor, addresses
from dermserve.predict.outcome import as_text
from dermserve.predict.pace import MOST
from dermserve.predict.run import INTERRUPTED, Run, Wish
from dermserve.predict.tables import Outputs
from dermserve.settings import Settings

_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--csv", "csv_path", type=_FILE, help="Table to write: filename,Benign,Suspicious,Malignant,Melanoma.")
@click.option("--jsonl", "jsonl_path", type=_FILE, help="JSON lines to write, with all that a result holds.")
@click.option(
    "--from-file", "lists", multiple=True, metavar="LIST", help="File that names images, by line or NUL; - is stdin."
)
@click.option(
    "--watch", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Take images as they come."
)
@click.option(
    "--settle", default=2.0, show_default=True, type=click.FloatRange(0), help="Seconds a file there stands still."
)
@click.option(
    "--every", default=1.0, show_default=True, type=click.FloatRange(0.05), help="Seconds between looks at it."
)
@click.option(
    "--url",
    help="Triton's gRPC, host:port[,host:port…], or the HTTP API, https://…; default: DERMSERVE_TRITON_URL, else the local "
    "Triton.",
)
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Holds the key for the HTTP API; default: DERMSERVE_API_KEY.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1, 1024), help="Images in flight, at most; default: as many as pay.")
@click.option("--give-up-after", type=click.FloatRange(0), metavar="SECONDS",
              help="How long a server may answer nothing; default: 300, 5 at first; --watch waits for ever.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Keep what an earlier run did and do the rest.")
def predict(  # noqa: PLR0917  click names them
    paths: tuple[str, ...],
    csv_path: Path | None,
    jsonl_path: Path | None,
    lists: tuple[str, ...],
    watch: Path | None,
    settle: float,
    every: float,
    url: str | None,
    api_key_file: Path | None,
    concurrency: int | None,
    give_up_after: float | None,
    resume: bool,
) -> None:
    """Score images and folders of images; one row each, in the order given (folders by name, with subfolders).

    A PATH is a file, a folder, a pattern in quotes, or - for one image on stdin. Images that are refused go to a second
    file, *.errors.csv, and make the exit status 1. Images that look like no dermoscopy photograph have a row, because all
    readable ones do, but their probabilities mean nothing: a third file, *.abstained.csv, names them. Triton does not say
    which they are: the threshold is that of this installation's model card, which should be the server's.

    Every outcome is kept in a journal beside the output, OUT.journal. After any interruption, the same command with
    --resume continues; new images come behind the others. Without --resume, the first answer replaces what an earlier run
    left.

    \b
    Exit status: 0 all scored; 1 some refused; 2 the call is wrong, or the key;
    3 no server answers; 4 the output, or the folder, is lost; 130 interrupted.

    \b
    Examples:
      dermserve predict lesions/ --csv out.csv
      dermserve predict a.jpg b.png scan.dcm --csv out.csv --url triton-1:8001,triton-2:8001
      dermserve predict archive/ --csv out.csv --concurrency 64 --resume
      find archive -name '*.dcm' -print0 | dermserve predict --from-file - --jsonl out.jsonl
      dermserve predict 'scans/*/*.jpg' --csv out.csv --url https://dermserve.example --api-key-file key
      dermserve predict --watch drop/ --csv out.csv --resume
    """
    settings = Settings()
    http = url is not None and api.is_api(url)
    with _exit_status(), _interruptible():
        outputs = _outputs(csv_path, jsonl_path)
        _require_sources(paths, lists, watch, resume=resume)
        card = None if http else _card(settings)
        most = concurrency or MOST
        run = Run(
            Wish(
                sources=inputs.sources(paths, lists),
                watch=watch,
                settle_s=settle,
                every_s=every,
                outputs=outputs,
                resume=resume,
                door=_door(settings, url, api_key_file, card, most, full=jsonl_path is not None),
                threshold=card.ood.thresholds["ood"] if card is not None and card.ood.measured else None,
                told_abstained=http,
                concurrency=most,
                give_up_after_s=give_up_after,
            )
        )
        try:
            run.enlist()
            start = time.monotonic()
            run.score()
            click.echo(run.summary(time.monotonic() - start))
        finally:
            run.close()
    if run.left and watch is None:
        click.echo(f"{run.left} images are left; continue with --resume.", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if run.refused:
        raise click.exceptions.Exit(1)


@contextmanager
def _exit_status() -> Iterator[None]:
    """Tell a call that can never succeed from one that may."""
    try:
        yield
    except (RequestInvalid, Unauthenticated, Forbidden, NotFound, MethodNotAllowed) as error:
        error.exit_status = max(2, error.exit_status)
        raise
    except KeyboardInterrupt:  # before the first image was sent; later it is the run's
        raise click.exceptions.Exit(INTERRUPTED) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM do what SIGINT does, also while images are listed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outputs(csv_path: Path | None, jsonl_path: Path | None) -> Outputs:
    if csv_path is None and jsonl_path is None:
        raise click.UsageError("Missing option '--csv' or '--jsonl'.")
    if csv_path is not None and csv_path == jsonl_path:
        raise click.UsageError("--csv and --jsonl are the same file.")
    return Outputs(csv_path, jsonl_path)


def _require_sources(paths: Sequence[str], lists: Sequence[str], watch: Path | None, *, resume: bool) -> None:
    if watch is not None and (paths or lists):
        raise click.UsageError("--watch takes its images from one folder; give PATHs and lists to a run of their own.")
    if [*paths, *lists].count(inputs.STDIN) > 1:
        raise click.UsageError("Only one of the PATHs and lists can be stdin.")
    if not (paths or lists or watch or resume):
        raise click.UsageError("Missing argument 'PATH...'.")


def _card(settings: Settings) -> ModelCard | None:
    """This installation's model card; None, with a line that says what is missing, where there is none."""
    try:
        return ModelCard.read(settings.model_repository)
    except StartupError as error:
        click.echo(f"Nothing is abstained on, because no threshold is known: {error.detail}", err=True)
        return None


def _door(
    settings: Settings, url: str | None, key_file: Path | None, card: ModelCard | None, most: int, *, full: bool
) -> Callable[[], Door]:
    if url is None or not api.is_api(url):
        urls = addresses(url) if url else settings.triton_urls
        return partial(TritonDoor, urls, card=card, operating_point=settings.operating_point, full=full)
    if api.in_the_clear(url):
        click.echo(f"{url} is not encrypted: everybody on the way can read the key and the images.", err=True)
    return partial(api.ApiDoor, url, _key(settings, key_file), concurrency=most, full=full)


def _key(settings: Settings, file: Path | None) -> str:
    key = settings.api_key.get_secret_value() if settings.api_key is not None else ""
    if file is not None:
        try:
            key = file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestInvalid(f"{as_text(file)} holds no key: it cannot be read as text.") from error
    if not (key := key.strip()):
        raise RequestInvalid("The HTTP API needs a key: set DERMSERVE_API_KEY, or give --api-key-file.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RequestInvalid("The API key holds characters that no key has.")  # nor could a header
    return key
