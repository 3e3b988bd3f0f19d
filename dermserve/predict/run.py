"""One run from its first input to its last line: what is done already, what is sent, what is left when it ends."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click

from dermserve.errors import DermserveError, InferenceUnavailable, RequestInvalid
from dermserve.predict import earlier, files, inputs
from dermserve.predict.doors import Door
from dermserve.predict.journal import Journal, JournalDamaged, JournalFault, journal_path, remove
from dermserve.predict.outcome import Done, Refusal, as_text
from dermserve.predict.pace import Pace
from dermserve.predict.patience import Patience
from dermserve.predict.progress import Meter, Ticker
from dermserve.predict.scoring import Scoring
from dermserve.predict.tables import Outputs, Tables
from dermserve.predict.watch import Watch

OUTPUT_FAILED = 4
INTERRUPTED = 130


class Wish(NamedTuple):
    """What one call of the command asks for.

    Args:
        sources: of images, in order.
        watch: a drop folder; None without one.
        settle_s: how long a file there must stand still, in seconds.
        every_s: between two looks at it.
        outputs: where to.
        resume: go on with what an earlier run left.
        door: makes the door, inside a running event loop; `title` is what to call it before that.
        threshold: on `ood`; None where this installation has no card.
        told_abstained: the door tells abstentions by itself.
        concurrency: requests on the wire, at most.
        give_up_after_s: see `Patience`.
    """

    sources: Sequence[inputs.Source]
    watch: Path | None
    settle_s: float
    every_s: float
    outputs: Outputs
    resume: bool
    door: Callable[[], Door]
    threshold: float | None
    told_abstained: bool
    concurrency: int
    give_up_after_s: float | None


class Run:
    """Also the `scoring.Sink`: what it writes is only what the journal has committed.

    What an earlier run left stays whole until the server has answered something: one that is away must not cost anybody
    their results. Until then the new journal has another name.

    Raises:
        RequestInvalid: a table cannot stand, or is not one of this command's; nothing was changed.
    """

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._home = journal_path(wish.outputs.main)
        looked_for = wish.threshold is not None or wish.told_abstained
        self.tables = Tables(wish.outputs, threshold=wish.threshold, looked_for=looked_for)
        self._waits = not wish.resume and (self.tables.existing or self._home.exists())
        self._replaced: Journal | None = None
        with self._telling():
            if self._waits and self._home.exists():
                with suppress(JournalDamaged):
                    self._replaced = Journal(self._home)  # locked until then, so that no other run writes to it
            elif not self._waits:
                self.journal = Journal(self._home)
            place = self._cleared()
            if self._waits:
                self.journal = Journal(place)
            self._created = self.journal.fresh
            if not wish.resume:
                self.journal.state("begun", 1)
                self.journal.state("full", int(wish.outputs.jsonl is not None))
                self.journal.state("threshold", wish.threshold)
            self.models = set(json.loads(self.journal.fact("models") or "[]"))
        self._door: Door | None = None
        self._meter: Meter | None = None
        self.stopped, self.left, self.refused = False, 0, 0

    def _cleared(self) -> Path:
        """Where a journal waits to replace another, without what a run that was killed left there."""
        place = self._home.with_name(f"{self._home.name}.new")
        if place.exists():
            with suppress(JournalDamaged):
                Journal(place).close()  # refused where another run waits
            remove(place)
        return place

    def enlist(self) -> None:
        """Find the inputs, and what is done of them.

        Raises:
            RequestInvalid: see `inputs.enlist`; the journal is as it was.
        """
        wish, journal = self._wish, self.journal
        with self._telling():
            if wish.resume:
                self._take_up()
            inputs.enlist(journal, wish.sources, Ticker("Listing"))
            if wish.resume:
                self._look_again()
            self.before = journal.counts()
        if wish.resume:
            click.echo(f"{self.before.done} of {self.before.inputs} images are done already.", err=True)

    def _take_up(self) -> None:
        wish, journal = self._wish, self.journal
        if not journal.fact("begun"):
            earlier.take_over(journal, wish.outputs.csv, full=wish.outputs.jsonl is not None)
        if wish.outputs.jsonl is not None and not journal.fact("full") and journal.counts().scored:
            raise RequestInvalid(
                f"The run that {as_text(wish.outputs.main)} holds kept no more than the CSV needs: --jsonl cannot be added "
                "to it. Leave out --resume, or --jsonl."
            )
        # Without a card, and through a door that tells no distance, the earlier rows keep the threshold they had.
        threshold = wish.threshold if wish.threshold is not None else journal.fact("threshold")
        journal.state("threshold", threshold)
        looked_for = threshold is not None or wish.told_abstained
        unchecked = journal.fact("unchecked") or 0
        if unchecked and looked_for:
            click.echo(
                f"Whether the {unchecked} rows that are kept mean anything was not looked at when they were written "
                f"({as_text(self.tables.abstained.path)} is missing); without --resume it will be.",
                err=True,
            )
        self.tables = Tables(wish.outputs, threshold=threshold, looked_for=looked_for and not unchecked)

    def _look_again(self) -> None:
        if again := self.journal.forget_passing():
            click.echo(f"{again} that could not be read, or not be scored, are tried again.", err=True)
        if changed := files.recheck(self.journal, Ticker("Looking for changes")):
            click.echo(f"{changed} have changed since they were scored, and are scored again.", err=True)

    def score(self) -> None:
        """Do what is left to do.

        Raises:
            DermserveError: the run cannot go on. Its detail says what it leaves.
        """
        with self._telling():
            asyncio.run(self._score())

    async def _score(self) -> None:
        wish = self._wish
        door = self._door = wish.door()
        pace = Pace(wish.concurrency)
        total = None if wish.watch is not None else self.before.inputs
        # A drop folder has no end: who watches one waits for its server, too.
        patience = Patience(door, math.inf if wish.watch and wish.give_up_after_s is None else wish.give_up_after_s)
        self._meter = Meter(total, self.before.done, lambda: pace.limit, lambda: patience.silent_s)
        feed = None
        if wish.watch is not None:
            feed = Watch(wish.watch, self.journal, self.tables.again, settle_s=wish.settle_s, every_s=wish.every_s)
        scoring = Scoring(door, self.journal, pace, patience=patience, sink=self, feed=feed)
        shown = asyncio.create_task(self._meter.show())
        try:
            with _signals(scoring):
                await scoring.run()
            self.stopped = scoring.stopped
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
            await door.close()
        if not self.stopped or self.tables.begun:
            self._begin()

    def written(self, batch: list[Done]) -> None:
        """See `scoring.Sink`."""
        assert self._meter is not None
        self._meter.finished += len(batch)
        self._meter.refused += sum(isinstance(done.outcome, Refusal) for done in batch)
        if not self._waits or any(done.stamp is not None for done in batch):
            self._begin()
        self._note_models()

    def _note_models(self) -> None:
        """Remember which models the results are of: figures of different ones are not to be compared unknowingly."""
        assert self._door is not None
        if not self._door.models <= self.models:
            self.models |= self._door.models
            self.journal.state("models", json.dumps(sorted(self.models)))

    def _begin(self) -> None:
        if self._waits:
            if self._replaced is not None:
                self._replaced.close()
            self.journal.move(self._home)
            self._waits = False
        self.tables.emit(self.journal)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Give every failure a last sentence that says what is left."""
        try:
            yield
        except JournalFault as error:
            error.detail = f"{error.detail} {self._left()}"
            raise
        except InferenceUnavailable as error:
            error.detail, error.exit_status = f"{error.detail} {self._left()}", 3
            raise
        except OSError as error:  # of a table: an image that cannot be read is a row
            failed = RequestInvalid(f"{self._wish.outputs.written} cannot be written: {error.strerror}. {self._left()}")
            failed.exit_status = OUTPUT_FAILED
            raise failed from error
        except files.FolderGone as error:
            error.detail = f"{error.detail} {self._left()}"
            raise

    def _left(self) -> str:
        if self._waits or not self._any():
            return "Nothing was written."
        return f"{self._rows()} rows are in {self._wish.outputs.written}; continue with --resume."

    def _any(self) -> bool:
        with suppress(DermserveError, AttributeError):  # the latter: there is no journal yet
            return self.journal.counts().done > 0
        return False

    def _rows(self) -> int:
        return self.tables.rows if self.tables.begun else self.journal.counts().scored

    def summary(self, elapsed_s: float) -> str:
        """The last line of a run that came to its end, or was stopped; also settles `left` and `refused`."""
        counts, tables = self.journal.counts(), self.tables
        self.left, self.refused = counts.inputs - counts.done, counts.refused
        finished = self._meter.finished if self._meter else 0
        line = f"{finished} images in {elapsed_s:.1f} s: {finished / max(elapsed_s, 1e-9):.1f} images/s; "
        line += f"{self._rows()} rows in {self._wish.outputs.written}"
        if tables.abstained.rows:
            line += f", {tables.abstained.rows} of them abstained on, see {as_text(tables.abstained.path)}"
        if counts.refused:
            line += f", {counts.refused} refused, see {as_text(tables.errors.path)}"
        if len(self.models) > 1:
            line += f". These results are of different models: {', '.join(sorted(self.models))}"
        return line

    def close(self) -> None:
        """Close everything; a journal that holds nothing worth keeping goes."""
        self.tables.close()
        worthless = self._waits or (self._created and not self._any())
        self.journal.close()
        if self._replaced is not None:
            self._replaced.close()
        if worthless:
            remove(self.journal.path)


@contextmanager
def _signals(scoring: Scoring) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run after what is on the wire; a second one at once."""
    loop, taken = asyncio.get_running_loop(), []

    def stop() -> None:
        if not scoring.stopped:
            click.echo("Stopping after what is in flight; once more stops at once.", err=True)
        scoring.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError):  # only the main thread gets signals
            loop.add_signal_handler(number, stop)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
