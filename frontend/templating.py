"""Jinja2 pages: the environment, its filters, and `render`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dermserve import __version__

STATIC: Final = Path(__file__).with_name("static")

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def percent(value: float) -> str:
    """A share (0…1) in words of one decimal, never rounded to a certainty that the model does not have."""
    if 0 < value < 0.001:
        return "<\u00a00.1\u00a0%"
    if 0.999 < value < 1:
        return ">\u00a099.9\u00a0%"
    return f"{value * 100:.1f}\u00a0%"


def point_name(name: str) -> str:
    """`sensitivity_95` as “95 % sensitivity”; any other name with spaces for underscores."""
    match = re.fullmatch(r"(sensitivity|specificity)_(\d+)", name)
    return f"{match[2]}\u00a0% {match[1]}" if match else name.replace("_", " ")


def data_name(name: str) -> str:
    """`val/HAM10000` as “validation, HAM10000”; any other name as it is."""
    return re.sub(r"^val\b", "validation", name).replace("/", ", ")


def measure_name(name: str) -> str:
    """`roc_auc` as “ROC-AUC”, `specificity_at_95_sensitivity` as “specificity at 95 % sensitivity”."""
    words = name.replace("roc_auc", "ROC-AUC").replace("_", " ")
    return re.sub(r"\b(\d+) (?=sensitivity|specificity)", "\\1\u00a0% ", words)


_FLAG_WORDS: Final = {
    "blurry": "It is blurred, or out of focus.",
    "hairy": "Hair covers part of it.",
    "marker_pen": "There are coloured marks, such as surgical ink, beside the lesion.",
    "color_tint": "Its colours have a strong cast, unlike skin in white light.",
}


def flag_words(flag: str) -> str:
    """A quality flag as a sentence."""
    return _FLAG_WORDS.get(flag, flag.replace("_", " "))


def when(moment: datetime) -> str:
    """A point in time in UTC, so that a printed page reads the same everywhere."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC"


def code(text: str) -> Markup:
    """Text in which `words in backticks` are code, as in the API's description."""
    parts = escape(text).split("`")
    return Markup().join(Markup("<code>%s</code>") % part if odd % 2 else part for odd, part in enumerate(parts))


_environment.filters |= {
    "percent": percent,
    "point_name": point_name,
    "data_name": data_name,
    "measure_name": measure_name,
    "flag_words": flag_words,
    "when": when,
    "code": code,
}
_environment.globals |= {"app_version": __version__}


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> Response:
    """Render a page. Without `caller` and `csrf_token` in `context` it shows itself as to a stranger."""
    shown = {"path": request.url.path, "caller": None, "csrf_token": None} | context
    return HTMLResponse(_environment.get_template(template).render(shown), status, dict(headers or {}))
