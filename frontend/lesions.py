"""Lesions: what ties the results of several images of one spot together over time."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import delete, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from dermserve.errors import Conflict, NotFound, RequestInvalid, Unauthenticated
from frontend import audit
from frontend.access import Caller
from frontend.audit import Action
from frontend.database import Database
from frontend.models import Lesion, Prediction
from frontend.ownership import visible_to

NAME_MAX: Final = 80
NOTE_MAX: Final = 500
BODY_SITES: Final = (
    "head/neck",
    "upper extremity",
    "lower extremity",
    "anterior torso",
    "lateral torso",
    "posterior torso",
    "palms/soles",
    "oral/genital",
)
"""The ISIC Archive's general anatomic sites."""


@dataclass(frozen=True)
class Context:
    """What a sender says about an image beside its bytes; checked by `of`."""

    lesion: str | None = None
    body_site: str | None = None
    note: str | None = None

    @classmethod
    def of(cls, lesion: str | None, body_site: str | None, note: str | None) -> Context:
        """As sent; empty text counts as nothing.

        Raises:
            RequestInvalid: a name or note that is too long or not printable, or an unknown body site.
        """
        site = " ".join((body_site or "").split()).lower() or None
        if site is not None and site not in BODY_SITES:
            raise RequestInvalid(f"The body site is one of: {', '.join(BODY_SITES)}.")
        return cls(_text(lesion, "name of the lesion", NAME_MAX), site, _text(note, "note", NOTE_MAX))


class Followed(NamedTuple):
    """A lesion in the list: how many images, when the last one came, and its melanoma probability (None: abstained)."""

    lesion: Lesion
    images: int
    last_at: datetime | None
    last_melanoma: float | None


class Lesions:
    """Lesions in the database, each of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, caller: Caller, name: str, body_site: str | None) -> UUID:
        """The caller's lesion of this name, made where there is none; a body site that was not known is filled in."""
        new = insert(Lesion).values(owner_id=caller.user_id, name=name, body_site=body_site)
        query = new.on_conflict_do_update(
            index_elements=[Lesion.owner_id, Lesion.name],
            set_={"body_site": func.coalesce(Lesion.body_site, new.excluded.body_site)},
        ).returning(Lesion.id)
        try:
            async with self._database.transaction() as session:
                return (await session.execute(query)).scalar_one()
        except IntegrityError as error:  # its owner went while the image was looked at
            raise Unauthenticated("This account was deleted.") from error

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

    async def all(self, caller: Caller) -> Sequence[Lesion]:
        """All of the caller's, by name."""
        query = select(Lesion).where(visible_to(Lesion, caller.user_id)).order_by(Lesion.name)
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def followed(self, caller: Caller) -> Sequence[Followed]:
        """All of the caller's with their latest result, the one seen last first."""
        last = (
            select(Prediction.created_at, Prediction.probabilities[4].label("melanoma"), Prediction.abstained)
            .where(Prediction.lesion_id == Lesion.id)
            .order_by(Prediction.created_at.desc())
            .limit(1)
            .lateral()
        )
        count = select(func.count()).where(Prediction.lesion_id == Lesion.id).scalar_subquery()
        query = (
            select(Lesion, count, last.c.created_at, last.c.melanoma, last.c.abstained)
            .outerjoin(last, true())
            .where(visible_to(Lesion, caller.user_id))
            .order_by(last.c.created_at.desc().nulls_last(), Lesion.name)
        )
        async with self._database.transaction() as session:
            rows = (await session.execute(query)).all()
        return [Followed(one, images, at, None if abstained else value) for one, images, at, value, abstained in rows]

    async def results(self, caller: Caller, lesion_id: UUID) -> Sequence[Prediction]:
        """The results of a lesion, oldest first.

        Raises:
            NotFound: there is no such lesion that this caller may see.
        """
        await self.get(caller, lesion_id)
        query = (
            select(Prediction)
            .where(Prediction.lesion_id == lesion_id, visible_to(Prediction, caller.user_id))
            .order_by(Prediction.created_at, Prediction.id)
        )
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

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


def _text(value: str | None, what: str, longest: int) -> str | None:
    text = " ".join(unicodedata.normalize("NFC", value or "").split())
    if len(text) > longest or not text.isprintable():
        raise RequestInvalid(f"The {what} has at most {longest} characters, all of them printable.")
    return text or None
