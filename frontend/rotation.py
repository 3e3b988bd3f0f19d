"""Sealing anew with the server's newest key everything that the database keeps sealed (see `vault.py`)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import InstrumentedAttribute

from frontend import destinations
from frontend.database import Database
from frontend.dicom import identifiers
from frontend.identity import second_factor
from frontend.models import Destination, Instance, User
from frontend.vault import Vault

_STEP: Final = 500  # rows of one transaction, so that nothing waits for a whole archive


class _Sealed(NamedTuple):
    key: InstrumentedAttribute[Any]
    content: InstrumentedAttribute[Any]
    purpose: str


_SEALED: Final = (
    _Sealed(User.id, User.totp_secret, second_factor.PURPOSE),
    _Sealed(Destination.id, Destination.secret, destinations.PURPOSE),
    _Sealed(Instance.prediction_id, Instance.patient, identifiers.PURPOSE),
)


async def reseal(database: Database, vault: Vault) -> tuple[int, int]:
    """Seal every secret with the vault's first key; how many were sealed anew, and how many no key opens."""
    anew = lost = 0
    for one in _SEALED:
        last = None
        while True:
            query = select(one.key, one.content).where(one.content.is_not(None)).order_by(one.key).limit(_STEP)
            async with database.transaction() as session:
                rows = (await session.execute(query if last is None else query.where(one.key > last))).all()
                for key, sealed in rows:
                    content = vault.open(sealed, one.purpose)
                    if content is None:
                        lost += 1
                    elif not vault.is_newest(sealed, one.purpose):
                        # Not where it was replaced meanwhile.
                        same = update(one.key.class_).where(one.key == key, one.content == sealed)
                        await session.execute(same.values({one.content: vault.seal(content, one.purpose)}))
                        anew += 1
            if not rows:
                break
            last = rows[-1][0]
    return anew, lost
