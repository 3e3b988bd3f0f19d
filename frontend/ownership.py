"""Which rows a user may see, change and delete: the one place that says so for every kind of object.

A query for an object of a user takes its condition from here; what is another's then does not exist for the caller, and
is answered with 404.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from frontend.models import ApiKey, Base, Lesion, Prediction, WebSession

_OWNER: Final[Mapping[type[Base], InstrumentedAttribute[UUID]]] = {
    Prediction: Prediction.owner_id,
    Lesion: Lesion.owner_id,
    ApiKey: ApiKey.user_id,
    WebSession: WebSession.user_id,
}


def visible_to(kind: type[Base], owner: UUID | BindParameter[Any]) -> ColumnElement[bool]:
    """The condition that rows of `kind` belong to `owner`; nobody sees anybody else's, whatever their role."""
    return _OWNER[kind] == owner
