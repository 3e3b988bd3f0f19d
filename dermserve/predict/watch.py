"""A drop folder: images are taken as they come, by looking again and again, because network shares send no events.

A file counts once nobody writes to it: its size and date stood still for a while, or its date is older by that while than
its last change of name, place or rights, both by the file server's clock. The latter is a file that was renamed or moved
in, and so is whole.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from dermserve.predict.inputs import SUFFIXES
from dermserve.predict.journal import Journal, Known
from dermserve.predict.outcome import as_text

_CHUNK: Final = 500
_UNOPENED_S: Final = 60.0  # a sender may lock what it writes; for longer, it is the rights that are wrong
_SHARE: Final = 0.1  # of the time at most goes into looking

InJournal = Callable[..., Awaitable[Any]]
"""Calls a function in the thread that may use the journal."""


class Seen(NamedTuple):
    """A file at one look. `since`: how long it has looked like this, by our own clock in seconds."""

    name: str
    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int
    since: float


class Watch:
    """The feed of a run that never ends by itself.

    Args:
        folder: looked through with all that is below it.
        journal: where new files are appended.
        changed: is called in the journal's thread after outcomes were dropped, because their files are others now.
        settle_s: how long a file must stand still.
        every_s: seconds between two looks; longer where a look takes long.
        clock: in seconds.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        changed: Callable[[], None],
        *,
        settle_s: float,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder.absolute()
        self._journal = journal
        self._changed = changed
        self._settle_s, self._every_s = settle_s, every_s
        self._clock = clock
        self._waiting: dict[str, Seen] = {}
        self._told = False

    async def more(self, in_journal: InJournal) -> int:
        """See `scoring.Feed.more`."""
        while True:
            start = self._clock()
            if (behind := await self._look(in_journal)) is not None:
                return behind
            await asyncio.sleep(max(self._every_s, (self._clock() - start) / _SHARE))

    async def _look(self, in_journal: InJournal) -> int | None:
        """One look at the whole folder; the position behind which something is to be done, None where nothing is."""
        before, self._waiting = self._waiting, {}
        behind: list[int] = []
        entries = self._entries()
        while chunk := await asyncio.to_thread(lambda: list(islice(entries, _CHUNK))):
            known = await in_journal(self._journal.known, [seen.name for seen in chunk])
            news = [seen for seen in chunk if _is_news(seen, known.get(seen.name))]
            ready = await asyncio.to_thread(self._ready, news, before)
            if ready:
                behind.append(await in_journal(self._take, ready, known))
        return min(behind, default=None)

    def _entries(self) -> Iterator[Seen]:
        now, folders = self._clock(), [self._folder]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._tell(folder, error)
                continue
            self._told = self._told and folder != self._folder
            for entry in listed:
                if entry.name.startswith("."):  # half of a transfer, as many programs name it
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        told = entry.stat()
                        name = as_text(Path(entry.path).relative_to(self._folder))
                        yield Seen(name, Path(entry.path), told.st_size, told.st_mtime_ns, told.st_ctime_ns, now)
                except OSError:
                    continue  # gone again

    def _tell(self, folder: Path, error: OSError) -> None:
        if folder == self._folder and not self._told:
            click.echo(f"{as_text(folder)} cannot be read ({error.strerror}); waiting for it.", err=True)
            self._told = True

    def _ready(self, news: Sequence[Seen], before: dict[str, Seen]) -> list[Seen]:
        """Those that nobody writes to; the others are remembered for the next look."""
        ready = []
        for seen in news:
            last = before.get(seen.name)
            if last is not None and last[2:4] == seen[2:4]:
                seen = seen._replace(since=last.since)  # noqa: PLW2901  it has stood still since then
            still_s = self._clock() - seen.since
            settled = still_s >= self._settle_s or seen.mtime_ns + self._settle_s * 1e9 <= seen.ctime_ns
            if settled and (_opens(seen.path) or still_s >= _UNOPENED_S):
                ready.append(seen)
            else:
                self._waiting[seen.name] = seen
        return ready

    def _take(self, ready: Sequence[Seen], known: dict[str, Known]) -> int:
        last = self._journal.append((seen.name, seen.path) for seen in ready)
        changed = [known[seen.name].position for seen in ready if seen.name in known]
        if changed:
            self._journal.forget(changed)
            self._changed()
        return min([last, *(position - 1 for position in changed)])


def _is_news(seen: Seen, known: Known | None) -> bool:
    """Whether the journal does not hold it, or has the outcome of other content."""
    return known is None or (known.size is not None and (known.size, known.mtime_ns) != (seen.size, seen.mtime_ns))


def _opens(path: Path) -> bool:
    try:
        path.open("rb").close()
    except OSError:
        return False
    return True
