"""Lesions: what ties the results of several images of one spot together over time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import (
    Select,
    Text,
    case,
    delete,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningInsert

from dermserve.errors import Conflict, NotFound, RequestInvalid, TooManyLesions, Unauthenticated
from frontend import audit, cursors
from frontend.access import Caller
from frontend.audit import Action
from frontend.context import Context
from frontend.database import Database
from frontend.models import Lesion, Prediction
from frontend.ownership import visible_to

LESIONS_MAX: Final = 20_000
"""Of one owner; the list of so many is still found at once."""


class Named(NamedTuple):
    """The lesion of a name; `made` is False where there was one already."""

    id: UUID
    made: bool


class Known(NamedTuple):
    """A lesion with what belongs to it: how many images, and when the first of them came (None: there is none)."""

    lesion: Lesion
    images: int
    since: datetime | None


class Followed(NamedTuple):
    """A lesion in the list: how many images, when the last one came, its melanoma probability (None: abstained)."""

    lesion: Lesion
    images: int
    last_at: datetime | None
    last_melanoma: float | None
    threshold: float | None


class Score(NamedTuple):
    """One result of a lesion as the plot shows it; `model` is its name, version and precision."""

    at: datetime
    melanoma: float
    refer: bool
    operating_point: str
    threshold: float
    model: tuple[str, str, str]


class Lesions:
    """Lesions in the database, each of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, caller: Caller, name: str, body_site: str | None) -> Named:
        """The caller's lesion of this name, made where there is none; a body site that was not known is filled in.

        Raises:
            TooManyLesions: it would be a new one, and the caller has `LESIONS_MAX` of them.
        """
        mine = visible_to(Lesion, caller.user_id)
        some = select(Lesion.id).where(mine).limit(LESIONS_MAX).subquery()
        room = select(func.count()).select_from(some).scalar_subquery() < LESIONS_MAX
        there = select(Lesion.id).where(mine, Lesion.name == name).exists()
        values = select(
            literal(uuid4()), literal(caller.user_id), literal(name, Text()), literal(body_site, Text())
        ).where(case((there, true()), else_=room))
        new = insert(Lesion).from_select(["id", "owner_id", "name", "body_site"], values)
        query: ReturningInsert[UUID, bool] = new.on_conflict_do_update(
            index_elements=[Lesion.owner_id, Lesion.name],
            set_={"body_site": func.coalesce(Lesion.body_site, new.excluded.body_site)},
        ).returning(Lesion.id, literal_column("lesions.xmax = 0"))  # the row's own mark of not being a changed one
        try:
            async with self._database.transaction() as session:
                row = (await session.execute(query)).one_or_none()
        except IntegrityError as error:  # its owner went while the image was looked at
            raise Unauthenticated("This account was deleted.") from error
        if row is None:
            raise TooManyLesions("There are too many lesions. Please forget some, or use the name of one that exists.")
        return Named(*row)

    async def withdraw(self, caller: Caller, lesion_id: UUID) -> None:
        """Take back a lesion that `ensure` made for a result which was then not stored, unless another's belongs to it."""
        mine = (Lesion.id == lesion_id, visible_to(Lesion, caller.user_id))
        used = select(Prediction.id).where(Prediction.lesion_id == lesion_id).exists()
        async with self._database.transaction() as session:
            # Locked first: a result that is just being stored is then either seen by the second statement, or comes
            # after it and finds that the lesion is gone.
            await session.execute(select(Lesion.id).where(*mine).with_for_update())
            await session.execute(delete(Lesion).where(*mine, ~used))

    async def get(self, caller: Caller, lesion_id: UUID) -> Lesion:
        """One lesion.

        Raises:
            NotFound: there is none that this caller may see.
        """
        query = select(Lesion).where(Lesion.id == lesion_id, visible_to(Lesion, caller.user_id))
        async with self._database.transaction() as session:
            found = await session.scalar(query)
        if found is None:
            raise NotFound("There is no such lesion.")
        return found

    async def known(self, caller: Caller, name: str) -> Known | None:
        """What an image with this name as its lesion would join; None where it would be the first.

        Raises:
            RequestInvalid: it is not usable as a name.
        """
        belongs = (Prediction.lesion_id == Lesion.id, visible_to(Prediction, caller.user_id))
        query = select(
            Lesion,
            select(func.count()).where(*belongs).scalar_subquery(),
            select(func.min(Prediction.created_at)).where(*belongs).scalar_subquery(),
        ).where(visible_to(Lesion, caller.user_id), Lesion.name == Context.of(name, None, None).lesion)
        async with self._database.transaction() as session:
            found = (await session.execute(query)).one_or_none()
        return Known(*found) if found is not None else None

    async def latest(self, caller: Caller, *, limit: int, holding: str = "") -> Sequence[Lesion]:
        """The caller's newest, those alone whose name holds a text."""
        query = select(Lesion).where(visible_to(Lesion, caller.user_id))
        if holding:
            query = query.where(Lesion.name.icontains(holding, autoescape=True))
        query = query.order_by(Lesion.created_at.desc(), Lesion.id.desc()).limit(limit)
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def all(self, caller: Caller) -> Sequence[Lesion]:
        """All of the caller's, by name."""
        query = select(Lesion).where(visible_to(Lesion, caller.user_id)).order_by(Lesion.name)
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def followed(
        self, caller: Caller, *, limit: int, cursor: str | None = None, search: str = ""
    ) -> tuple[Sequence[Followed], str | None]:
        """The caller's with their latest result, the one seen last first, and the cursor of the next page.

        Raises:
            RequestInvalid: `cursor` is not one that an earlier page gave.
        """
        belongs = (Prediction.lesion_id == Lesion.id, visible_to(Prediction, caller.user_id))
        last = (
            select(
                Prediction.created_at,
                Prediction.probabilities[4].label("melanoma"),
                Prediction.abstained,
                Prediction.threshold,
            )
            .where(*belongs)
            .order_by(Prediction.created_at.desc(), Prediction.id.desc())
            .limit(1)
            .lateral()
        )
        seen = func.coalesce(last.c.created_at, Lesion.created_at)
        count = select(func.count()).where(*belongs).scalar_subquery()
        query: Select[Any] = (
            select(Lesion, count, last.c.created_at, last.c.melanoma, last.c.threshold, last.c.abstained)
            .outerjoin(last, true())
            .where(visible_to(Lesion, caller.user_id))
            .order_by(seen.desc(), Lesion.id.desc())
            .limit(limit + 1)
        )
        if search:
            query = query.where(Lesion.name.icontains(search, autoescape=True))
        if cursor is not None:
            query = query.where(tuple_(seen, Lesion.id) < tuple_(*map(literal, cursors.time_of(cursor))))
        async with self._database.transaction() as session:
            rows = (await session.execute(query)).all()
        found = [
            Followed(one, images, at, None if abstained else melanoma, threshold)
            for one, images, at, melanoma, threshold, abstained in rows[:limit]
        ]
        further = len(rows) > limit
        end = found[-1] if further else None
        return found, cursors.after_time(end.last_at or end.lesion.created_at, end.lesion.id) if end else None

    async def scores(self, caller: Caller, lesion_id: UUID, *, limit: int) -> tuple[Sequence[Score], int]:
        """The latest assessed results of a lesion, oldest first, and how many there are in all."""
        mine = (
            Prediction.lesion_id == lesion_id,
            visible_to(Prediction, caller.user_id),
            Prediction.abstained.is_(False),
        )
        query = (
            select(
                Prediction.created_at,
                Prediction.probabilities[4],
                Prediction.refer,
                Prediction.operating_point,
                Prediction.threshold,
                Prediction.model_name,
                Prediction.model_version,
                Prediction.model_precision,
            )
            .where(*mine)
            .order_by(Prediction.created_at.desc(), Prediction.id.desc())
            .limit(limit)
        )
        async with self._database.transaction() as session:
            rows = (await session.execute(query)).all()
            total = len(rows)
            if total == limit:
                total = await session.scalar(select(func.count()).where(*mine)) or 0
        scores = [
            Score(at, melanoma, refer, point, threshold, (name, version, precision))
            for at, melanoma, refer, point, threshold, name, version, precision in reversed(rows)
        ]
        return scores, total

    async def names(self, caller: Caller, ids: Collection[UUID]) -> Mapping[UUID, str]:
        """The names of the caller's lesions among `ids`."""
        if not ids:
            return {}
        query = select(Lesion.id, Lesion.name).where(Lesion.id.in_(ids), visible_to(Lesion, caller.user_id))
        async with self._database.transaction() as session:
            return {row.id: row.name for row in (await session.execute(query)).all()}

    async def change(self, caller: Caller, lesion_id: UUID, name: str, body_site: str | None) -> None:
        """Give a lesion another name and body site.

        Raises:
            NotFound: there is none that this caller may change.
            Conflict: another of the caller's lesions has this name.
            RequestInvalid: no usable name, or an unknown body site.
        """
        said = Context.of(name, body_site, None)
        if said.lesion is None:
            raise RequestInvalid("Please give the lesion a name.")
        query = (
            update(Lesion)
            .where(Lesion.id == lesion_id, visible_to(Lesion, caller.user_id))
            .values(name=said.lesion, body_site=said.body_site)
            .returning(Lesion.id)
        )
        taken = select(Lesion.id).where(
            Lesion.id != lesion_id, Lesion.name == said.lesion, visible_to(Lesion, caller.user_id)
        )
        try:
            async with self._database.transaction() as session:
                # Asked first: where the constraint is violated, PostgreSQL writes the name into its log.
                if await session.scalar(taken) is not None:
                    raise Conflict("Another of your lesions has this name already.")
                changed = await session.scalar(query)
        except IntegrityError as error:
            raise Conflict("Another of your lesions has this name already.") from error
        if changed is None:
            raise NotFound("There is no such lesion.")

    async def delete(self, caller: Caller, lesion_id: UUID) -> None:
        """Forget a lesion; its results stay, and belong to none.

        Raises:
            NotFound: there is none that this caller may delete.
        """
        query = delete(Lesion).where(Lesion.id == lesion_id, visible_to(Lesion, caller.user_id)).returning(Lesion.id)
        async with self._database.transaction() as session:
            if await session.scalar(query) is None:
                raise NotFound("There is no such lesion.")
            await audit.append(session, Action.LESION_DELETED, actor=caller.user_id, about=lesion_id)
