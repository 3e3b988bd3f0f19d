"""What a sender says about an image beside its bytes: the lesion, where it is, a note."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final

from dermserve.errors import RequestInvalid

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


def _text(value: str | None, what: str, longest: int) -> str | None:
    text = " ".join(unicodedata.normalize("NFC", value or "").split())
    if len(text) > longest or not text.isprintable():
        raise RequestInvalid(f"The {what} has at most {longest} characters, all of them printable.")
    return text or None
