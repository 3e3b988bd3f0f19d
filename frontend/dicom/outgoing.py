"""Associations that we ask for."""

from __future__ import annotations

import time
from typing import Final

from pynetdicom.association import Association

_LOOK_S: Final = 0.0005


def settle(association: Association) -> None:
    """Return when the association's own thread is back at work; call it before each request or release but the first.

    pynetdicom (3.0) sends a request as soon as that thread says that it waits, and it says so for a moment longer after the
    request before: it may then take the answer for itself and drop it, about once in two hundred on a busy machine.
    """
    while association.is_established and association._is_paused:
        time.sleep(_LOOK_S)
