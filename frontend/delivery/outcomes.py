"""What comes of an attempt that did not arrive. `reason` is made of our words and numbers, never of the other side's text,
which may hold a patient's name: it stands in lists, logs and the database.
"""

from __future__ import annotations

from typing import Final

OUT_OF_RESOURCES: Final = 0xA7
"""High byte of the statuses by which a DICOM peer says that it may take the object later (PS3.4 table B.2-1)."""
DUPLICATE: Final = 0x0111
"""Duplicate SOP instance (PS3.7 annex C): it has the report, from an attempt whose answer was lost."""


class TryLaterError(Exception):
    """It may arrive another time. `wait_s` is how long the destination asks to be left alone, at least."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class RefusedError(Exception):
    """The destination will not take it, however often it is sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_status(status: int, how: str) -> None:
    """Return where a DICOM status, or a failure reason of DICOMweb, says that the report is there.

    Raises:
        TryLaterError: out of resources.
        RefusedError: any other failure.
    """
    if status in (0x0000, DUPLICATE) or status >> 12 == 0xB:  # success, or a warning: stored all the same
        return
    reason = f"{how} 0x{status:04X}"
    if status >> 8 == OUT_OF_RESOURCES:
        raise TryLaterError(reason)
    raise RefusedError(reason)
