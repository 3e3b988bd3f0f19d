"""Built engines, kept: a folder in which each file's name says what it was built from and what it must hash to."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dermserve.errors import StartupError


@dataclass(frozen=True)
class Key:
    """What an engine depends on; any difference makes another engine.

    `onnx_sha256` is that of the graph which the builder was given, so it tells FP16 from FP32, too.
    """

    onnx_sha256: str
    library: str
    compute_capability: str
    profile: tuple[int, int, int]

    def __str__(self) -> str:
        profile = "-".join(map(str, self.profile))
        return f"{self.onnx_sha256}_{self.library}_sm{self.compute_capability}_{profile}"


def find(folder: Path, key: Key) -> bytes | None:
    """The engine kept for `key`; a damaged one is removed and not returned."""
    for path in sorted(folder.glob(f"{key}.*.engine")):
        with suppress(OSError):
            content = path.read_bytes()
            if path.name == _name(key, content):
                return content
            path.unlink()
    return None


def keep(folder: Path, key: Key, engine: bytes) -> None:
    """Keep `engine`, in place of any other for the same key."""
    name = _name(key, engine)
    write(folder / name, engine)
    for path in folder.glob(f"{key}.*.engine"):
        if path.name != name:
            path.unlink(missing_ok=True)


def _name(key: Key, content: bytes) -> str:
    return f"{key}.{hashlib.sha256(content).hexdigest()[:16]}.engine"


def write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all.

    Raises:
        StartupError: the folder cannot be written, or is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StartupError(_cannot_write(path.parent, error)) from error


def require_room(folder: Path, wanted: int) -> None:
    """Find out now, not after minutes of building, that a file of `wanted` bytes cannot be written to `folder`.

    Raises:
        StartupError: as `write`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
        if free < wanted:
            raise OSError(errno.ENOSPC, f"{wanted / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")
    except OSError as error:
        raise StartupError(_cannot_write(folder, error)) from error


def _cannot_write(folder: Path, error: OSError) -> str:
    return f"{folder} cannot be written: {error.strerror}."
