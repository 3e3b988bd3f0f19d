"""The whole stack on one machine: PostgreSQL, Triton, web server and DICOM door, started, watched and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg

from deploy import repository, triton
from deploy.postgres import Postgres, create_database
from deploy.processes import Child
from dermserve.errors import StartupError
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from frontend.database import URL_FILE, migrate
from frontend.logs import WEB_LOG

log = logging.getLogger("dermserve.serve")

_START_TIMEOUT_S = 120.0
_POLL_S = 0.1


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run the stack until SIGTERM or SIGINT; `announce` gets the address once `/readyz` is 200.

    Raises:
        StartupError: something cannot start; the message says what and what to do.
    """
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.enter_context(_only_one(settings.state_dir))
        _check_ports(settings)
        stopped = _stop_requested()
        (settings.state_dir / "logs").mkdir(parents=True, exist_ok=True)
        if settings.embedded_triton:
            settings = await asyncio.to_thread(_with_own_models, settings)
        ModelCard.read(settings.model_repository).operating_point(settings.operating_point)
        children = await _start(settings, cleanup, stopped)
        if stopped.is_set():
            return
        watches = [asyncio.create_task(child.keep_running()) for child in children]
        if settings.embedded_triton:
            watches.append(asyncio.create_task(triton.watch(children[0], settings)))
        for watch in watches:
            cleanup.callback(watch.cancel)
        announce(address(settings))
        await stopped.wait()


def address(settings: Settings) -> str:
    """What to type into a browser."""
    return settings.public_url or f"http://{settings.host}:{settings.port}"


async def _start(settings: Settings, cleanup: contextlib.AsyncExitStack, stopped: asyncio.Event) -> list[Child]:
    """Start every part, PostgreSQL and Triton side by side, and wait until the whole answers."""
    environment = {
        **os.environ,
        # Found again by the web workers, whatever folder they run in.
        "DERMSERVE_STATE_DIR": str(settings.state_dir.resolve()),
        "DERMSERVE_MODEL_REPOSITORY": str(settings.model_repository.resolve()),
    }
    children: list[Child] = []

    async def launch(child: Child) -> Child:
        await child.start()
        cleanup.push_async_callback(child.stop)
        children.append(child)
        return child

    until = _Until(stopped)
    if settings.embedded_triton:
        await launch(triton.child(settings, environment))
    url = settings.database_url
    if url is None:
        postgres = Postgres(settings, environment)
        await asyncio.to_thread(postgres.prepare)
        server = await launch(postgres.child())
        url = postgres.url
        await until("PostgreSQL to answer", lambda: _answers(create_database, url), [server])
        cleanup.enter_context(_published(settings.state_dir / URL_FILE, url))
    if not stopped.is_set():
        await asyncio.to_thread(migrate, url)
        environment["DERMSERVE_DATABASE_URL"] = url
        await launch(_web(settings, environment.copy()))
        await launch(_dicom(settings, environment))
        await until("the DICOM door to listen", lambda: asyncio.to_thread(_listening, settings), children)
        await until("the service to be ready", lambda: asyncio.to_thread(_ready, settings), children)
    return children


def _with_own_models(settings: Settings) -> Settings:
    """Serve a copy of the model repository, made now and fitted to this machine.

    An export while the stack runs then changes nothing until the next start: a Triton that is started anew would else
    load weights of which the web server, with the old card in memory, knows neither version nor threshold.
    """
    copy = settings.state_dir.resolve() / "model_repository"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        settings.model_repository, copy, ignore=shutil.ignore_patterns("__pycache__", ".export-*", "*.plan", "*.engine")
    )
    repository.fit(copy, settings)
    return settings.model_copy(update={"model_repository": copy})


def _web(settings: Settings, environment: dict[str, str]) -> Child:
    command = [
        *(sys.executable, "-m", "uvicorn", "--factory", "frontend.app:create_app"),
        f"--host={settings.host}",
        f"--port={settings.port}",
        f"--workers={settings.workers}",
        "--http=frontend.connections:BoundedProtocol",
        "--ws=none",  # no route takes one
        f"--log-config={WEB_LOG}",
        "--no-server-header",
        "--no-access-log",  # /metrics counts requests; a line for each would fill the disk
        "--timeout-graceful-shutdown=20",
        "--log-level=info",
    ]
    figures = settings.state_dir.resolve() / "prometheus"
    if settings.workers > 1:  # the workers share their figures through files, so that /metrics speaks for all
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(figures)

    async def clean() -> None:
        await asyncio.to_thread(shutil.rmtree, figures, ignore_errors=True)
        await asyncio.to_thread(figures.mkdir)

    log_file = settings.state_dir / "logs/web.log"
    return Child("the web server", command, log_file, environment, clean, stop_timeout_s=25)


def _dicom(settings: Settings, environment: dict[str, str]) -> Child:
    command = [sys.executable, "-m", "frontend.dicom"]
    log_file = settings.state_dir / "logs/dicom.log"
    return Child("the DICOM door", command, log_file, environment, stop_timeout_s=25)


class _Until:
    """Waits for a part to become true, and gives up when a child has died, the time is over or a stop is asked for."""

    def __init__(self, stopped: asyncio.Event) -> None:
        self._stopped = stopped
        self._deadline = time.monotonic() + _START_TIMEOUT_S

    async def __call__(self, what: str, true: Callable[[], Awaitable[bool]], children: list[Child]) -> None:
        while not self._stopped.is_set() and not await true():
            for child in children:
                if not child.running:
                    raise StartupError(
                        f"{child.name} ended while starting. {child.log_file} says:\n{child.explanation()}"
                    )
            if time.monotonic() > self._deadline:
                raise StartupError(f"Waited {_START_TIMEOUT_S:.0f} s for {what}; see {children[-1].log_file.parent}.")
            await asyncio.sleep(_POLL_S)


async def _answers(call: Callable[[str], Awaitable[None]], url: str) -> bool:
    try:
        await call(url)
    except (asyncpg.PostgresError, OSError, TimeoutError):
        return False
    return True


def _listening(settings: Settings) -> bool:
    try:
        with socket.create_connection((_reachable(settings.dicom_host), settings.dicom_port), timeout=1):
            return True
    except OSError:
        return False


def _reachable(host: str) -> str:
    """Where this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not listened on


def _ready(settings: Settings) -> bool:
    host = _reachable(settings.host)
    try:
        # Without proxies: an http_proxy of the environment is not for our own address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{host}:{settings.port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop_requested() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory's lock: two stacks on one database folder would destroy it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartupError(
                f"Another dermserve runs on {state_dir}: stop it, or set DERMSERVE_STATE_DIR and the ports."
            ) from error
        yield


@contextlib.contextmanager
def _published(path: Path, text: str) -> Iterator[None]:
    """Keep `text` in a file that only we can read, for as long as the stack runs."""
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _check_ports(settings: Settings) -> None:
    wanted = {
        "DERMSERVE_PORT": (settings.host, settings.port),
        "DERMSERVE_DICOM_PORT": (settings.dicom_host, settings.dicom_port),
    }
    if settings.embedded_triton:
        wanted |= {
            "DERMSERVE_TRITON_GRPC_PORT": ("127.0.0.1", settings.triton_grpc_port),
            "DERMSERVE_TRITON_HTTP_PORT": ("127.0.0.1", settings.triton_http_port),
            "DERMSERVE_TRITON_METRICS_PORT": ("127.0.0.1", settings.triton_metrics_port),
        }
    for variable, (host, port) in wanted.items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As the servers do: a connection that lingers from an earlier run does not count as in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise StartupError(f"Port {port} on {host} {reason}: set {variable} to another.") from error
