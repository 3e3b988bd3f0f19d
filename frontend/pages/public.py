"""Pages for everybody: home, about, privacy, terms, the API's description, drawn samples, the language."""

from __future__ import annotations

import asyncio
import io
from datetime import datetime
from functools import lru_cache
from typing import Final

from fastapi import APIRouter, Request, Response
from PIL import Image
from starlette.responses import RedirectResponse

from dermserve import labels, sample
from dermserve.errors import BY_CODE, NotFound
from dermserve.model_card import OperatingPoint
from frontend import i18n
from frontend.dependencies import Services, ServicesDep, VisitDep
from frontend.pages.local import local
from frontend.pages.rendering import page

router = APIRouter(include_in_schema=False)
SAMPLES: Final = 6
_SMALL: Final = (160, 120)  # pixels
_YEAR_S: Final = 365 * 24 * 3600


@router.get("/")
async def home(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """What this is, for whom, and its limits."""
    return page(request, visit, "home.html", card=services.card, point=_point(services))


@router.get("/about")
async def about(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """The model card."""
    names, made = labels.LEAF_NAMES, _moment(services.card.created_at)
    return page(request, visit, "about.html", card=services.card, point=_point(services), leaf_names=names, made=made)


@router.get("/privacy")
async def privacy(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """What is kept of whom, for how long, and how to get rid of it."""
    hours, minutes = services.settings.session_hours, services.settings.session_idle_minutes
    return page(request, visit, "privacy.html", session_hours=hours, session_idle_minutes=minutes)


@router.get("/terms")
async def terms(request: Request, visit: VisitDep) -> Response:
    """What may be expected of this, and what may be done with it."""
    return page(request, visit, "terms.html")


@router.get("/docs")
async def docs(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """The API's description, rendered here: the usual viewers load their scripts from elsewhere."""
    base_url = services.base_url(request)
    return page(request, visit, "docs.html", document=request.app.openapi(), errors=BY_CODE, base_url=base_url)


@router.get("/language/{language}")
async def choose_language(language: str, services: ServicesDep, next: str = "/") -> Response:
    """Remember the visitor's language and go back to where they were."""
    if language not in i18n.LANGUAGES:
        raise NotFound
    response = RedirectResponse(local(next, "/"), 303)
    secure = services.cookie.secure
    name = i18n.COOKIE_BEHIND_TLS if secure else i18n.COOKIE
    response.set_cookie(name, language, max_age=_YEAR_S, secure=secure, httponly=True, samesite="lax")
    return response


@router.get("/samples/{number}.jpg")
async def sample_image(number: int, small: bool = False) -> Response:
    """A drawn lesion image for those who have none at hand; `small` to choose from."""
    if not 1 <= number <= SAMPLES:
        raise NotFound
    data = await asyncio.to_thread(_small_sample if small else _sample, number)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "public, max-age=86400"})


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # a card may say it in words
        return None


def _point(services: Services) -> tuple[str, OperatingPoint]:
    name = services.settings.operating_point
    return name, services.card.operating_point(name)


@lru_cache(maxsize=SAMPLES)
def _sample(number: int) -> bytes:
    return sample.jpeg(number)


@lru_cache(maxsize=SAMPLES)
def _small_sample(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(_sample(number)), formats=("JPEG",)).resize(_SMALL).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
