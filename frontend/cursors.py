"""Where a page of a list ended, as a text that the next request brings back."""

from __future__ import annotations

import base64
import binascii
import struct
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from dermserve.errors import RequestInvalid

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TIME: Final = struct.Struct(">q16s")
_SCORE: Final = struct.Struct(">f16s")


def after_time(at: datetime, last: UUID) -> str:
    """The cursor of a list by time whose page ended with the object `last`."""
    return base64.urlsafe_b64encode(_TIME.pack((at - _EPOCH) // _MICROSECOND, last.bytes)).decode()


def after_score(score: float, last: UUID) -> str:
    """The same of a list by a 32-bit figure."""
    return base64.urlsafe_b64encode(_SCORE.pack(score, last.bytes)).decode()


def time_of(cursor: str) -> tuple[datetime, UUID]:
    """What `after_time` was given.

    Raises:
        RequestInvalid: the text is no such cursor.
    """
    key, last = _unpack(_TIME, cursor)
    try:
        return _EPOCH + timedelta(microseconds=key), last
    except OverflowError as error:
        raise RequestInvalid("This cursor is not valid; start again without one.") from error


def score_of(cursor: str) -> tuple[float, UUID]:
    """What `after_score` was given.

    Raises:
        RequestInvalid: the text is no such cursor.
    """
    return _unpack(_SCORE, cursor)


def _unpack(layout: struct.Struct, cursor: str) -> tuple[float, UUID]:
    try:
        key, last = layout.unpack(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, struct.error, ValueError) as error:
        raise RequestInvalid("This cursor is not valid; start again without one.") from error
    return key, UUID(bytes=last)
