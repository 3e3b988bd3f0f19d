"""The web application: `uvicorn --factory frontend.app:create_app`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.routing import Route

from dermserve import __version__
from dermserve.client import AsyncTritonClient
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from frontend import api, batch, health, pages, problems, stow
from frontend.database import Database, database_url
from frontend.dependencies import Services
from frontend.dicom.identifiers import Identifiers
from frontend.history import History
from frontend.identity.keys import Keys
from frontend.identity.second_factor import SecondFactor
from frontend.identity.sessions import Sessions
from frontend.identity.sign_on import SignOn
from frontend.identity.users import Users
from frontend.intake import Intake
from frontend.lesions import Lesions
from frontend.mail import Mailer
from frontend.metrics import Metrics, MetricsMiddleware
from frontend.organisations import Organisations
from frontend.overload import OverloadMiddleware
from frontend.predictions import Inference, Predictions
from frontend.retention import expire_for_ever
from frontend.security import SecurityMiddleware, SessionCookie, is_https
from frontend.templating import STATIC
from frontend.throttle import Throttle
from frontend.vault import Vault


def triton(settings: Settings) -> Inference:
    """The Triton client; opens no connection yet."""
    return AsyncTritonClient(settings.triton_urls, timeout_s=settings.inference_timeout_s)


def create_app(settings: Settings | None = None, connect: Callable[[Settings], Inference] = triton) -> FastAPI:
    """Build the application. Neither Triton nor PostgreSQL need be up yet; `/readyz` tells.

    Args:
        settings: read from the environment when None.
        connect: makes the inference client, called once in the running event loop.

    Raises:
        StartupError: no usable model card, an unknown operating point, or no database address.
    """
    settings = settings or Settings()
    card = ModelCard.read(settings.model_repository)
    card.operating_point(settings.operating_point)
    url = database_url(settings)
    metrics, intake = Metrics(), Intake()
    vault, mailer = Vault.of(settings), Mailer(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database, inference = Database(url), connect(settings)
        lesions = Lesions(database)
        app.state.services = Services(
            settings=settings,
            card=card,
            database=database,
            inference=inference,
            users=Users(database),
            sessions=Sessions(
                database,
                lifetime=timedelta(hours=settings.session_hours),
                idle=timedelta(minutes=settings.session_idle_minutes),
            ),
            keys=Keys(database),
            second_factor=SecondFactor(database, vault),
            identifiers=Identifiers(vault),
            sign_on=SignOn(settings, vault, secure=is_https(settings)),
            mailer=mailer,
            predictions=Predictions(
                database, inference, card, operating_point=settings.operating_point, metrics=metrics, lesions=lesions
            ),
            history=History(database, lesions),
            lesions=lesions,
            organisations=Organisations(database),
            intake=intake,
            throttle=Throttle(database, images=settings.rate_limit, registrations=settings.registration_limit),
            metrics=metrics,
            cookie=SessionCookie(settings),
        )
        reaper = asyncio.create_task(expire_for_ever(database))
        try:
            yield
        finally:
            reaper.cancel()
            await app.state.services.predictions.close()
            await inference.close()
            await database.close()

    app = FastAPI(
        title="dermserve",
        version=__version__,
        summary="Melanoma classification. Research use only; not a medical device.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for router in (api.router, batch.router, stow.router, health.router, *pages.ROUTERS):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    problems.install(app)
    app.add_middleware(OverloadMiddleware, route=_route("create"), intake=intake, metrics=metrics)
    app.add_middleware(SecurityMiddleware, https=is_https(settings))
    app.add_middleware(MetricsMiddleware, metrics=metrics)  # outermost: it must see every final status
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _route(name: str) -> Route:
    return next(route for route in api.router.routes if isinstance(route, Route) and route.name == name)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the problem schema in place of its own error schema, and the two ways to sign in."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        components = document["components"]
        schemas = components["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Problem"] = problems.Problem.model_json_schema()
        components["securitySchemes"] = {
            "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key from the page “API keys”."},
            "session": {"type": "apiKey", "in": "cookie", "name": "derm_session", "description": "A logged-in page."},
        }
        for path, operations in document["paths"].items():
            if path.startswith(("/v1/", "/dicomweb/")):
                for operation in operations.values():
                    operation["security"] = [{"apiKey": []}, {"session": []}]
        app.openapi_schema = document
    return app.openapi_schema
