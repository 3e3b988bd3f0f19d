"""One child process of the stack: started, watched, restarted with a growing pause, and ended with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("dermserve.serve")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_STEADY_S = 60.0  # a child that lived this long starts over with the shortest pause
_LARGEST_LOG = 10_000_000  # bytes; looked at when a child starts
_TELLING = re.compile(r"\b(error|fatal|fail(ed)?|exception|cannot|mismatch)\b", re.IGNORECASE)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


async def _nothing() -> None:
    return


@dataclass
class Child:
    """A process in a session of its own, whose output goes to a log file.

    `clean` runs before every start, to remove what an earlier life may have left. `stop_signal` asks it to end.
    """

    name: str
    command: Sequence[str]
    log_file: Path
    environment: Mapping[str, str]
    clean: Callable[[], Awaitable[None]] = _nothing
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 10.0
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    _log_start: int = 0

    async def start(self) -> None:
        """Start the process; does not wait until it is ready."""
        await self.clean()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > _LARGEST_LOG:
            self.log_file.replace(self.log_file.with_suffix(".old.log"))
        # An earlier run's errors are not this one's.
        self._log_start = len(self.log_file.read_text(errors="replace").splitlines()) if self.log_file.exists() else 0
        with self.log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,
                preexec_fn=self._prepare,
            )
        log.debug("%s: started, pid %d", self.name, self._process.pid)

    def _prepare(self) -> None:
        """Runs in the child, between fork and exec."""
        # A supervisor killed with SIGKILL would else leave its children behind, holding ports and memory.
        _LIBC.prctl(_PR_SET_PDEATHSIG, self.stop_signal)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the process to end by itself; returns its exit status (negative: minus the signal)."""
        assert self._process is not None
        status = await self._process.wait()
        self._end_group()
        return status

    async def keep_running(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        pause = _FIRST_PAUSE_S
        while True:
            born = time.monotonic()
            status = await self.wait()
            if time.monotonic() - born > _STEADY_S:
                pause = _FIRST_PAUSE_S
            log.warning(
                "%s ended (status %d); starting it again in %.1f s, log: %s", self.name, status, pause, self.log_file
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            try:
                await self.start()
            except OSError as error:  # no memory or no disk, perhaps for a moment: the next round tries again
                log.error("%s cannot be started: %s", self.name, error)

    async def stop(self) -> None:
        """Ask it to end, wait, then kill what is left of its session."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self.stop_signal)
            try:
                await asyncio.wait_for(self._process.wait(), self.stop_timeout_s)
            except TimeoutError:
                log.warning("%s did not end within %.0f s and is killed", self.name, self.stop_timeout_s)
        self._end_group()
        await self._process.wait()
        await self.clean()

    def explanation(self, count: int = 8) -> str:
        """The lines of its log that say what went wrong, for an error message; else the last ones."""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        telling = [line for line in lines[self._log_start :] if _TELLING.search(line)]
        return "\n".join((telling or lines)[-count:])

    def _end_group(self) -> None:
        # The session's leader may be gone while what it started (Triton's stubs) lives on.
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
