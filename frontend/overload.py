"""A full server says so at once: before routing, the key's look-up and FastAPI's layers, which take half of a refusal.

Under three times what the machine can do, two requests in three are refused; every core-second that goes into them is
taken from the images that were let in.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dermserve.errors import Overloaded
from frontend import problems
from frontend.intake import Intake
from frontend.metrics import Metrics


class OverloadMiddleware:
    """Refuses a machine's image while there is no room for one; all else passes, people's images included.

    Whether the key is a good one is not asked first: all that its sender learns is that the server is busy. `route` is
    where images arrive.
    """

    def __init__(self, app: ASGIApp, *, route: Route, intake: Intake, metrics: Metrics) -> None:
        self._app = app
        self._route = route
        self._intake = intake
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == self._route.path:
            try:
                if "authorization" in Headers(scope=scope):
                    self._intake.check_room(machine=True)
            except Overloaded as error:
                scope["route"] = self._route  # under this name the request is counted
                self._metrics.refused(error.code)
                await problems.respond(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
