"""The embedded Triton: the `tritonserver` binary and python backend out of the `nvidia-pytriton` wheel.

The binary is run directly on the model repository, without PyTriton's own API. NVIDIA's container serves the same
repository without `--model-config-name`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from deploy.processes import Child
from dermserve.client import INTERACTIVE, MODEL
from dermserve.errors import StartupError
from dermserve.settings import Settings

log = logging.getLogger("dermserve.serve")

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  POSIX shared memory, not a temporary file
_STUB = "triton_python_backend_stub"
_STUB_POLL_S = 1.0
# The python backend starts its stubs through a shell, without quotes.
_SAFE_PATH = re.compile(r"[A-Za-z0-9/._:+=@%-]+")
# Of each stub at its start, and what it grows by: 24 prepared images (300×300×3), so that a usual batch never grows it.
_SHARED_MEMORY_BYTES = 8 * 1024 * 1024
_MANAGEMENT_APIS = "model-repository,shared-memory,trace,logging"


def child(settings: Settings, environment: Mapping[str, str]) -> Child:
    """Lay out the backend directory under the state directory and describe the process.

    Raises:
        StartupError: this platform has no embedded Triton, or a library it needs is missing.
    """
    wheel = _wheel()
    state = settings.state_dir / "triton"
    for path in (state.resolve(), settings.model_repository.resolve()):
        if not _SAFE_PATH.fullmatch(str(path)):
            raise StartupError(
                f"Triton's python backend cannot live in {path}: use a path of letters, digits and . _ - + only "
                "(DERMSERVE_STATE_DIR moves it)."
            )
    backends = _lay_out_backend(wheel, state)
    prefix = _memory_prefix(settings.state_dir)
    # An unguessable header value: nobody is to load models or map memory through these APIs.
    closed = f"{_MANAGEMENT_APIS}:x-dermserve-closed={os.urandom(16).hex()}"
    command = [
        str(wheel / "bin/tritonserver"),
        f"--model-repository={settings.model_repository.resolve()}",
        "--model-config-name=openvino",
        f"--backend-directory={backends}",
        f"--cache-directory={wheel / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--backend-config=python,shm-default-byte-size={_SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={_SHARED_MEMORY_BYTES}",
        "--http-address=127.0.0.1",
        f"--http-port={settings.triton_http_port}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={settings.triton_grpc_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={settings.triton_metrics_port}",
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
        "--http-thread-count=2",  # for health and figures; images come by gRPC
        "--allow-gpu-metrics=false",
        # Summaries cost a third of the throughput in one report, and cannot be added up over servers.
        "--metrics-config=counter_latencies=true",
        "--metrics-config=summary_latencies=false",
        # On a CPU `melanoma` has no steps; those of an engine for a GPU stay unloaded, and so they do (the API is closed).
        "--model-control-mode=explicit",
        f"--load-model={MODEL}",
        f"--load-model={INTERACTIVE}",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=5",
        "--log-verbose=0",
        *_tracing(settings),
    ]

    async def clean() -> None:
        # Stubs outlive a server that was killed while it started them; the region's name is among their arguments.
        for process in psutil.process_iter(["cmdline"]):
            if any(prefix in argument for argument in process.info["cmdline"] or ()) and process.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() != "tritonserver":
                        process.kill()
        for region in _SHARED_MEMORY.glob(f"{prefix}*"):  # noqa: ASYNC240  memory, not a disk
            region.unlink(missing_ok=True)

    return Child("Triton", command, settings.state_dir / "logs/triton.log", _environment(environment), clean)


async def watch(server: Child, settings: Settings) -> None:
    """Do for the running server what it does not do for itself; runs until cancelled.

    Its shared memory, which holds the last images, is made readable for this account alone: it is created for everyone.
    When a stub has died, the server is ended, so that it is started anew: Triton 2.51 never replaces a dead stub, fails
    its model's requests from then on, and still calls the model ready.
    """
    prefix = _memory_prefix(settings.state_dir)
    watched, most = None, 0
    while True:
        for region in _SHARED_MEMORY.glob(f"{prefix}*"):  # noqa: ASYNC240  memory, not a disk
            with contextlib.suppress(FileNotFoundError):
                region.chmod(0o600)
        await asyncio.sleep(_STUB_POLL_S)
        if server.pid != watched:
            watched, most = server.pid, 0
        if watched is None:
            continue
        try:
            alive = sum(_is_living_stub(child) for child in psutil.Process(watched).children())
        except psutil.NoSuchProcess:
            continue
        if alive < most:
            log.error("Triton lost %d of its %d python stubs and is started anew", most - alive, most)
            with contextlib.suppress(ProcessLookupError):
                os.kill(watched, signal.SIGKILL)
        most = max(most, alive)


def _tracing(settings: Settings) -> list[str]:
    """Options that send the times of a part of the requests, by step, to an OpenTelemetry collector."""
    if settings.triton_trace_url is None:
        return []
    return [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        f"--trace-config=rate={settings.triton_trace_rate}",
        f"--trace-config=opentelemetry,url={settings.triton_trace_url}",
        "--trace-config=opentelemetry,resource=service.name=dermserve-triton",
    ]


def _is_living_stub(process: psutil.Process) -> bool:
    try:  # Triton leaves a dead stub a zombie, of which only the status can be read
        return process.status() != psutil.STATUS_ZOMBIE and process.name() == _STUB
    except psutil.Error:
        return False


def _wheel() -> Path:
    spec = find_spec("pytriton") if (platform.system(), platform.machine()) == ("Linux", "x86_64") else None
    if spec is None or spec.origin is None:
        raise StartupError(
            "The embedded Triton runs on Linux x86-64 only; elsewhere start NVIDIA's container on model_repository/ "
            "and set DERMSERVE_TRITON_URL=host:8001."
        )
    return Path(spec.origin).parent / "tritonserver"


def _lay_out_backend(wheel: Path, state: Path) -> Path:
    """Make `backends/python` with the stub of the running Python's version; the wheel's own folder is left untouched."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / _STUB
    backend = state / "backends/python"
    backend.mkdir(parents=True, exist_ok=True)
    for source in (
        wheel / "backends/python/libtriton_python.so",
        wheel / "backends/python/triton_python_backend_utils.py",
        stub,
    ):
        target = backend / source.name
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.copy2(source, target)
    (backend / stub.name).chmod(0o755)
    linked = subprocess.run(
        ["ldd", str(backend / stub.name)], env=_environment(os.environ), capture_output=True, text=True, check=False
    ).stdout
    if f"libpython{version}.so.1.0 => not found" in linked:
        raise StartupError(
            f"Triton's python backend needs the shared library libpython{version}.so.1.0: "
            f"apt-get install libpython{version} (or use a Python built with --enable-shared)."
        )
    return backend.parent.resolve()


def _environment(base: Mapping[str, str]) -> dict[str, str]:
    """What the stub needs to become this very Python: its libpython, and its virtual environment first on PATH."""
    bundled = (
        _wheel().parent.parent / "nvidia_pytriton.libs"
    )  # found relative to the wheel's own folder, which the copy left
    libraries = [str(sysconfig.get_config_var("LIBDIR") or ""), str(bundled), base.get("LD_LIBRARY_PATH", "")]
    return {
        **base,
        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{base.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # One thread for every numeric library in a stub: parallelism comes from instances.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _memory_prefix(state_dir: Path) -> str:
    """A name for shared-memory regions that is this stack's own, so that cleaning up never touches another's."""
    return "dermserve_" + hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12] + "_"
