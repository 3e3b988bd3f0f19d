"""What TensorRT says while it works: into the log, the first error into the exception, its phases onto a bar."""

from __future__ import annotations

import functools
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from export.graph import one_line

_log = logging.getLogger(__name__)


class Messages:
    """A logger for TensorRT that prints nothing. `trt` is the module `tensorrt` or `tensorrt_rtx_bindings`."""

    def __init__(self, trt: Any) -> None:
        self.logger = _logger(trt)
        self.logger.errors.clear()

    def first_error(self) -> str:
        """Since this object was made, in one line; later ones are consequences."""
        errors = self.logger.errors
        return one_line(errors[0]) if errors else "it gave no reason."


@functools.cache
def _logger(trt: Any) -> Any:
    """One for the whole process: TensorRT keeps the first that it is given, and never lets go of it."""
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            _log.debug("%s %s", level.name, message)
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, for a while in which raising would be lost: inside a library that calls back.

    Leaving raises KeyboardInterrupt if it was set. Outside the main thread it never is.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed.is_set():
            raise KeyboardInterrupt


def progress_monitor(trt: Any, progress: Any, pressed: threading.Event) -> Any:
    """TensorRT's phases as tasks of a `rich.progress.Progress` (or None); once `pressed`, the next step stops it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            if progress is not None:
                self._tasks[phase_name] = progress.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None:
                progress.update(self._tasks[phase_name], completed=step + 1)
            return not pressed.is_set()

        def phase_finish(self, phase_name: str) -> None:
            if progress is not None:
                progress.remove_task(self._tasks.pop(phase_name))

    return Monitor()
