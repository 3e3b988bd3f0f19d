"""Jinja2 pages: the environment, its filters, and `render`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dermserve import __version__
from frontend import i18n

STATIC: Final = Path(__file__).with_name("static")


def point_name(name: str) -> str:
    """`sensitivity_95` as “95 % sensitivity”; any other name with spaces for underscores."""
    match = re.fullmatch(r"(sensitivity|specificity)_(\d+)", name)
    return f"{match[2]}\u00a0% {match[1]}" if match else name.replace("_", " ")


def data_name(name: str) -> str:
    """`val/HAM10000` as “validation, HAM10000”; any other name as it is."""
    return re.sub(r"^val\b", "validation", name).replace("/", ", ")


_MEASURES: Final = {
    "partial_auc": "partial ROC-AUC",
    "roc_auc": "ROC-AUC",
    "brier": "Brier",
    "_equal_width": ", bins of equal width",
}


def measure_name(name: str) -> str:
    """`roc_auc` as “ROC-AUC”, `specificity_at_95_sensitivity` as “specificity at 95 % sensitivity”."""
    for written, said in _MEASURES.items():
        name = name.replace(written, said)
    words = name.replace("_", " ")
    return re.sub(r"\b(\d+) (?=sensitivity|specificity)", "\\1\u00a0% ", words)


_FLAG_WORDS: Final = {
    "blurry": "It is blurred, or out of focus.",
    "hairy": "Hair covers part of it.",
    "marker_pen": "There are coloured marks, such as surgical ink, beside the lesion; ink near it can raise the score.",
    "color_tint": "Its colours have a strong cast, unlike skin in white light.",
}


def flag_words(flag: str) -> str:
    """A quality flag as a sentence."""
    return _FLAG_WORDS.get(flag, flag.replace("_", " "))


# The first that fits: browsers claim to be others as well.
_BROWSERS: Final = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


def browser_name(agent: str) -> str:
    """“Firefox, Windows” for what a browser calls itself (User-Agent); what is no browser is shown as it is."""
    browser = next((name for mark, name in _BROWSERS if mark in agent), None)
    system = next((name for mark, name in _SYSTEMS if mark in agent), None)
    return ", ".join(name for name in (browser, system) if name) if browser else agent


def code(text: str) -> Markup:
    """Text in which `words in backticks` are code, as in the API's description."""
    parts = escape(text).split("`")
    return Markup().join(Markup("<code>%s</code>") % part if odd % 2 else part for odd, part in enumerate(parts))


@cache
def _environment(language: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        extensions=["jinja2.ext.i18n"],
        autoescape=select_autoescape(),  # not in plain text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.install_gettext_translations(i18n.translations(language), newstyle=True)  # type: ignore[attr-defined]
    environment.policies["ext.i18n.trimmed"] = True
    environment.filters |= {
        "percent": partial(i18n.percent, language=language),
        "number": partial(i18n.number, language=language),
        "when": partial(i18n.when, language=language),
        "day": partial(i18n.day, language=language),
        "point_name": point_name,
        "data_name": data_name,
        "measure_name": measure_name,
        "flag_words": flag_words,
        "browser_name": browser_name,
        "code": code,
        "said": i18n.translations(language).gettext,
    }
    environment.globals |= {
        "app_version": __version__,
        "language": language,
        "languages": {one: i18n.own_name(one) for one in i18n.LANGUAGES},
    }
    return environment


def language_of(request: Request) -> str:
    """The language in which this visitor reads."""
    kept = request.cookies.get(i18n.COOKIE_BEHIND_TLS, request.cookies.get(i18n.COOKIE))
    return i18n.chosen(kept, request.headers.get("accept-language", ""))


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> Response:
    """Render a page in the visitor's language. Without `caller` and `csrf_token` it shows itself as to a stranger."""
    shown = {"path": request.url.path, "caller": None, "csrf_token": None} | context
    sent = {"Vary": "Accept-Language, Cookie", **(headers or {})}
    return HTMLResponse(_environment(language_of(request)).get_template(template).render(shown), status, sent)


def render_text(request: Request, template: str, **context: Any) -> str:
    """A plain text, such as a mail, in the visitor's language."""
    return _environment(language_of(request)).get_template(template).render(context)
