"""Image files: their bytes, as one moment left them, and whether they are still what was scored."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from dermserve.errors import ImageTooLarge, StartupError, UnreadableFile
from dermserve.image import MAX_BYTES
from dermserve.predict.inputs import STDIN
from dermserve.predict.journal import Journal
from dermserve.predict.outcome import Item, Refusal, Stamp

_HELD_BYTES: Final = 256 * 1024 * 1024
_SMALL_BYTES: Final = 1024 * 1024
_TRIES: Final = 5


class Content(NamedTuple):
    """A file's bytes and what they are told by."""

    data: bytes
    stamp: Stamp


class FolderGone(StartupError):
    """The folder that was given is not there any more, such as a share that was unmounted: no fault of an image."""

    exit_status = 4


def read(path: Path) -> Content:
    """The bytes of a file that nobody changed meanwhile.

    Raises:
        ImageTooLarge: more than `image.MAX_BYTES`; nothing is read.
        UnreadableFile: the file system gives no bytes.
    """
    try:
        if path == Path(STDIN):
            return _of(sys.stdin.buffer.read(MAX_BYTES + 1), 0)
        with path.open("rb") as file:
            for _ in range(_TRIES):
                before = os.fstat(file.fileno())
                _require_size(before.st_size)
                file.seek(0)
                data = file.read(MAX_BYTES + 1)
                after = os.fstat(file.fileno())
                if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                    return _of(data, after.st_mtime_ns)
    except OSError as error:
        raise UnreadableFile(f"The file cannot be read: {error.strerror}.") from error
    raise UnreadableFile("The file cannot be read: it is being written.")


def _of(data: bytes, mtime_ns: int) -> Content:
    _require_size(len(data))
    return Content(data, Stamp(len(data), mtime_ns, hashlib.sha256(data).hexdigest()))


def _require_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageTooLarge(f"The file is {size:,} bytes; at most {MAX_BYTES:,} are accepted.")


class Reader:
    """Reads in threads, and bounds the bytes that are held until they are answered for."""

    def __init__(self, most: int = _HELD_BYTES) -> None:
        self._left = most
        self._freed = asyncio.Condition()
        self._devices: dict[str, int] = {}
        self._lost: set[str] = set()

    @asynccontextmanager
    async def reading(self, item: Item) -> AsyncIterator[Content]:
        """The content of a file, held until the block is left; see `read` for what it raises.

        Raises:
            FolderGone: nor is the folder there that was given.
        """
        found = await asyncio.to_thread(self._small, item)
        if isinstance(found, Content):  # bounded by the number of images that are open at once
            yield found
            return
        size = min(found, MAX_BYTES)
        async with self._freed:
            await self._freed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield await asyncio.to_thread(self._read, item)
        finally:
            self._left += size
            async with self._freed:
                self._freed.notify_all()

    def _small(self, item: Item) -> Content | int:
        """The content of a small file, the size of a large one."""
        root, size = _root(item), 0
        with suppress(OSError):  # reading it says why
            if root not in self._devices:
                self._devices[root] = Path(root).stat().st_dev
            size = item.path.stat().st_size
        return size if size > _SMALL_BYTES else self._read(item)

    def _read(self, item: Item) -> Content:
        root = _root(item)
        try:
            content = read(item.path)
        except UnreadableFile as error:
            if self._is_gone(root):
                self._lost.add(root)
                raise FolderGone(f"{root} is not there any more, or cannot be read.") from error
            raise
        if root in self._lost:  # what was mounted anew is the same under another number
            self._lost.discard(root)
            self._devices[root] = Path(root).stat().st_dev
        return content

    def _is_gone(self, root: str) -> bool:
        try:
            # A mount point stays when what was mounted goes.
            return self._devices.get(root) != Path(root).stat().st_dev
        except OSError:
            # What a list names may never have been there.
            return root in self._devices or root.endswith("/")


def _root(item: Item) -> str:
    """The folder that was given: what stands before the name."""
    path = str(item.path)
    return path.removesuffix(item.name) if path.endswith(f"/{item.name}") else str(item.path.parent)


def recheck(journal: Journal, tell: Callable[[int], None] = lambda _: None) -> int:
    """Drop the outcomes of files whose content is no longer what was scored; returns how many.

    A file with another date or size is read: only its bytes decide. One that is gone keeps its row.
    """
    changed, after, seen = 0, 0, 0
    while page := journal.stamped(after):
        forget = []
        for item, stamp in page:
            verdict = _still(item, stamp)
            if verdict is False:
                forget.append(item.position)
            elif isinstance(verdict, Stamp):
                journal.touched(item.position, verdict)
        journal.forget(forget)
        changed, after, seen = changed + len(forget), page[-1][0].position, seen + len(page)
        tell(seen)
    return changed


def _still(item: Item, stamp: Stamp) -> bool | Stamp:
    """True where size and date say so, the new stamp where only the bytes do, else False."""
    try:
        now = item.path.stat()
        if item.path == Path(STDIN) or (now.st_size, now.st_mtime_ns) == (stamp.size, stamp.mtime_ns):
            return True
        content = read(item.path)
    except OSError:
        return True
    except ImageTooLarge:
        return False
    except UnreadableFile:
        return True
    return content.stamp if content.stamp.sha256 == stamp.sha256 else False


def refusal(error: UnreadableFile | ImageTooLarge) -> Refusal:
    """What stands in the table; a file that gave no bytes is tried again by the next run."""
    return Refusal.of(error, passing=isinstance(error, UnreadableFile))
