"""Stored results: read, searched, summed up, changed, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    REAL,
    ColumnElement,
    and_,
    case,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import defer

from dermserve.errors import NotFound, RequestInvalid
from frontend import audit, cursors
from frontend.access import Caller
from frontend.audit import Action
from frontend.context import BODY_SITES, Context
from frontend.database import Database
from frontend.lesions import Lesions
from frontend.models import Lesion, Prediction
from frontend.ownership import visible_to

Decided = Literal["refer", "below", "abstained"]
Sort = Literal["newest", "oldest", "melanoma"]
# What means nothing comes last. Written out, without parameters: else the index `ix_predictions_melanoma` would not serve.
_MELANOMA: Final = case(
    (Prediction.abstained, literal_column("'-1'::real", REAL())),
    else_=literal_column("predictions.probabilities[4]", REAL()),
)
_SEARCH_MAX: Final = 100


@dataclass(frozen=True)
class Filter:
    """Which results: all conditions hold at once. `since` and `until` are days in UTC, both included."""

    search: str = ""
    since: date | None = None
    until: date | None = None
    lesion: UUID | None = None
    body_site: str | None = None
    decision: Decided | None = None
    sort: Sort = "newest"

    @classmethod
    def of(cls, sent: Mapping[str, str]) -> Filter:
        """From a form's fields or an address's query; what is empty does not count.

        Raises:
            RequestInvalid: a value that no filter has.
        """
        sort, decision, site = sent.get("sort") or "newest", sent.get("decision") or None, sent.get("body_site") or None
        if sort not in get_args(Sort) or decision not in (None, *get_args(Decided)) or site not in (None, *BODY_SITES):
            raise RequestInvalid("There is no such filter.")
        try:
            since, until = (date.fromisoformat(sent[name]) if sent.get(name) else None for name in ("since", "until"))
            lesion = UUID(sent["lesion"]) if sent.get("lesion") else None
        except ValueError as error:
            raise RequestInvalid("A day is written like 2026-05-31, a lesion by its id.") from error
        search = sent.get("search", "").replace("\0", "").strip()[:_SEARCH_MAX]
        return cls(search, since, until, lesion, site, decision, sort)  # type: ignore[arg-type]

    def conditions(self, caller: Caller) -> list[ColumnElement[bool]]:
        """As SQL, with who may see what."""
        found = [visible_to(Prediction, caller.user_id)]
        if self.search:
            named = select(Lesion.id).where(
                visible_to(Lesion, caller.user_id), Lesion.name.icontains(self.search, autoescape=True)
            )
            found.append(
                or_(
                    Prediction.filename.icontains(self.search, autoescape=True),
                    Prediction.note.icontains(self.search, autoescape=True),
                    Prediction.lesion_id.in_(named),
                )
            )
        if self.since is not None:
            found.append(Prediction.created_at >= datetime.combine(self.since, time(), UTC))
        if self.until is not None and self.until < date.max:
            found.append(Prediction.created_at < datetime.combine(self.until, time(), UTC) + timedelta(days=1))
        if self.lesion is not None:
            found.append(Prediction.lesion_id == self.lesion)
        if self.body_site is not None:
            found.append(Prediction.body_site == self.body_site)
        if self.decision is not None:
            found.append(_decided(self.decision))
        return found


def _decided(decision: Decided) -> ColumnElement[bool]:
    if decision == "abstained":
        return Prediction.abstained.is_(True)
    return and_(Prediction.abstained.is_(False), Prediction.refer.is_(decision == "refer"))


@dataclass(frozen=True)
class Page:
    """Results in the order asked for, and the cursor of the next page or None on the last one."""

    items: Sequence[Prediction]
    next_cursor: str | None


@dataclass(frozen=True)
class Summary:
    """Of all results that a filter leaves: how many of each decision, and by month, newest first."""

    total: int
    refer: int
    below: int
    abstained: int
    months: Sequence[tuple[date, int, int]]
    """(first day, results, of which referrals)."""


class History:
    """The results of a caller. What people read, change and delete one by one is noted in the audit."""

    def __init__(self, database: Database, lesions: Lesions) -> None:
        self._database = database
        self._lesions = lesions

    async def get(self, caller: Caller, prediction_id: UUID) -> Prediction:
        """One result.

        Raises:
            NotFound: there is none that this caller may see.
        """
        query = select(Prediction).where(Prediction.id == prediction_id, visible_to(Prediction, caller.user_id))
        async with self._database.transaction() as session:
            found = await session.scalar(query)
            if found is not None and not caller.machine:
                await audit.append(session, Action.RESULT_READ, actor=caller.user_id, about=prediction_id)
        if found is None:
            raise NotFound("There is no such result.")
        return found

    async def change(self, caller: Caller, prediction_id: UUID, context: Context) -> None:
        """Say anew what the image is of; what was said before is replaced.

        Raises:
            NotFound: there is no such result that this caller may change.
        """
        mine = (Prediction.id == prediction_id, visible_to(Prediction, caller.user_id))
        async with self._database.transaction() as session:
            if await session.scalar(select(Prediction.id).where(*mine)) is None:
                raise NotFound("There is no such result.")
        named = await self._lesions.ensure(caller, context.lesion, context.body_site) if context.lesion else None
        query = (
            update(Prediction)
            .where(*mine)
            .values(lesion_id=named.id if named else None, body_site=context.body_site, note=context.note)
            .returning(Prediction.id)
        )
        async with self._database.transaction() as session:
            if await session.scalar(query) is None:
                raise NotFound("There is no such result.")
            await audit.append(session, Action.RESULT_CHANGED, actor=caller.user_id, about=prediction_id)

    async def delete(self, caller: Caller, prediction_id: UUID) -> None:
        """Delete one result for good; the same image sent again makes a new one.

        Raises:
            NotFound: there is none that this caller may see.
        """
        query = delete(Prediction).where(Prediction.id == prediction_id, visible_to(Prediction, caller.user_id))
        async with self._database.transaction() as session:
            if await session.scalar(query.returning(Prediction.id)) is None:
                raise NotFound("There is no such result.")
            await audit.append(session, Action.RESULT_DELETED, actor=caller.user_id, about=prediction_id)

    async def page(
        self, caller: Caller, *, limit: int, cursor: str | None = None, wanted: Filter | None = None, maps: bool = False
    ) -> Page:
        """Results in the filter's order. What is inserted while someone pages shifts nothing that a cursor continues.

        `maps`: with their class activation maps, which lists do not show and without which they are read twice as fast.

        Raises:
            RequestInvalid: `cursor` is not one that an earlier page of this order gave.
        """
        wanted = wanted or Filter()
        query = select(Prediction).where(*wanted.conditions(caller))
        query = query if maps else query.options(defer(Prediction.cam, raiseload=True))
        key: Any = _MELANOMA if wanted.sort == "melanoma" else Prediction.created_at
        down = wanted.sort != "oldest"
        if cursor is not None:
            value, last = _read_cursor(cursor, wanted.sort)
            after = tuple_(literal(value, key.type), last)
            query = query.where(tuple_(key, Prediction.id) < after if down else tuple_(key, Prediction.id) > after)
        order = (key.desc(), Prediction.id.desc()) if down else (key, Prediction.id)
        async with self._database.transaction() as session:
            rows = (await session.scalars(query.order_by(*order).limit(limit + 1))).all()
        items = rows[:limit]
        return Page(items, _write_cursor(items[-1], wanted.sort) if len(rows) > limit else None)

    async def pages(
        self, caller: Caller, *, wanted: Filter | None = None, maps: bool = False, step: int = 500
    ) -> AsyncIterator[Sequence[Prediction]]:
        """Every result newest first, fetched in pages, so that memory does not grow with the history."""
        wanted, cursor = replace(wanted or Filter(), sort="newest"), None
        while True:
            page = await self.page(caller, limit=step, cursor=cursor, wanted=wanted, maps=maps)
            yield page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    async def all(self, caller: Caller) -> AsyncIterator[Prediction]:
        """Everything that is held about each result, newest first."""
        async for items in self.pages(caller, maps=True):
            for item in items:
                yield item

    async def summary(self, caller: Caller, wanted: Filter) -> Summary:
        """What the filter's results add up to."""
        month = func.date_trunc(literal_column("'month'"), Prediction.created_at, literal_column("'UTC'")).label(
            "month"
        )
        counts = [func.count().filter(_decided(decision)).label(decision) for decision in get_args(Decided)]
        query = (
            select(month, func.count().label("all"), *counts)
            .where(*wanted.conditions(caller))
            .group_by(month)
            .order_by(month.desc())
        )
        async with self._database.transaction() as session:
            rows = (await session.execute(query)).mappings().all()
        return Summary(
            total=sum(row["all"] for row in rows),
            refer=sum(row["refer"] for row in rows),
            below=sum(row["below"] for row in rows),
            abstained=sum(row["abstained"] for row in rows),
            months=[(row["month"].astimezone(UTC).date(), row["all"], row["refer"]) for row in rows],
        )

    async def exported(self, caller: Caller) -> None:
        """Note that the caller takes results out."""
        async with self._database.transaction() as session:
            await audit.append(session, Action.RESULTS_EXPORTED, actor=caller.user_id, about=caller.user_id)


def _write_cursor(last: Prediction, sort: Sort) -> str:
    if sort == "melanoma":
        return cursors.after_score(-1.0 if last.abstained else last.probabilities[3], last.id)
    return cursors.after_time(last.created_at, last.id)


def _read_cursor(cursor: str, sort: Sort) -> tuple[Any, UUID]:
    return cursors.score_of(cursor) if sort == "melanoma" else cursors.time_of(cursor)
