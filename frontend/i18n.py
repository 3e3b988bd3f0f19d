"""The languages of the pages: which one a browser gets, its words, its way of writing figures and dates.

Texts are written in English where they stand, in templates as `{{ _("…") }}`; `locale/<language>.po` holds what they are
elsewhere. `pybabel extract` finds them, and a test tells which ones a language lacks. The JSON API speaks English only.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Final

from babel import Locale, negotiate_locale
from babel.dates import format_datetime
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal, format_percent
from babel.support import NullTranslations, Translations

LANGUAGES: Final = ("en", "es", "ca")
COOKIE: Final = "derm_language"
"""Holds the choice of a visitor; without it the browser's own preference counts."""
COOKIE_BEHIND_TLS: Final = f"__Host-{COOKIE}"
_DIGITS_MAX: Final = 8  # which tell any 32-bit probability from a threshold that it is not
_FOLDER: Final = Path(__file__).with_name("locale")


def chosen(cookie: str | None, accept_language: str) -> str:
    """The language for a browser: what its visitor chose, else what it prefers among ours, else English."""
    if cookie in LANGUAGES:
        return cookie
    wanted = [tag.partition(";")[0].strip() for tag in accept_language[:200].split(",")]
    return negotiate_locale([tag.replace("-", "_") for tag in wanted if tag], LANGUAGES) or "en"


@cache
def translations(language: str) -> NullTranslations:
    """The words of a language; what it lacks is said in English."""
    if language == "en":
        return NullTranslations()
    compiled = BytesIO()
    write_mo(compiled, catalog(language))  # in memory: no compiled file can be older than its source
    compiled.seek(0)
    return Translations(compiled)


def catalog(language: str) -> Catalog:
    """The file of a language as its translators wrote it."""
    with (_FOLDER / f"{language}.po").open("rb") as file:
        return read_po(file, locale=language)


def own_name(language: str) -> str:
    """What the language calls itself."""
    return (Locale.parse(language).get_display_name(language) or language).capitalize()


def percent(value: float, language: str, beside: float | None = None) -> str:
    """A share (0…1) with one decimal, never rounded to a certainty that the model does not have.

    `beside` is the threshold that it is compared with, or the share where this is the threshold: where one decimal
    would make the two the same, both get as many as tell them apart.
    """
    for digits in range(1, _DIGITS_MAX):
        shown = _percent(value, language, digits)
        if beside is None or beside == value or shown != _percent(beside, language, digits):
            return shown
    return _percent(value, language, _DIGITS_MAX)


def _percent(value: float, language: str, digits: int) -> str:
    least = 10.0 ** -(2 + digits)
    if 0 < value < least:
        return f"<\u00a0{_rounded(least, language, digits)}"
    if 1 - least < value < 1:
        return f">\u00a0{_rounded(1 - least, language, digits)}"
    return _rounded(value, language, digits)


def _rounded(value: float, language: str, digits: int) -> str:
    shown = format_percent(value, f"#,##0.{'0' * digits}\u00a0%", locale=language)
    return shown.replace("\u00a0\u00a0", "\u00a0")


def when(moment: datetime, language: str) -> str:
    """A point in time in UTC, so that a printed page reads the same everywhere."""
    return f"{format_datetime(moment.astimezone(UTC), 'd MMM y, HH:mm', locale=language)} UTC"


def day(moment: datetime, language: str) -> str:
    """The day of a point in time, in UTC."""
    return format_datetime(moment.astimezone(UTC), "d MMM y", locale=language)


def number(value: float, language: str, decimals: int = 0) -> str:
    """With the separators of the language."""
    return format_decimal(round(value, decimals), "#,##0" + ("." + "0" * decimals if decimals else ""), locale=language)
