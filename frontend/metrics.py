"""Prometheus figures of this process: few names, labels from closed sets, so that they cannot grow without bound."""

from __future__ import annotations

import os
import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """Counters and histograms in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "dermserve_http_request_seconds",
            "Time to answer an HTTP request.",
            ["method", "route", "status"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._inference = Histogram(
            "dermserve_inference_seconds",
            "Time of one call to the model server, its queue included.",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._predictions = Counter(
            "dermserve_predictions", "Results committed.", ["decision"], registry=self._registry
        )
        self._refused = Counter("dermserve_refused", "Requests refused.", ["code"], registry=self._registry)
        self._deliveries = Counter(
            "dermserve_deliveries", "Attempts to send a result out.", ["kind", "outcome"], registry=self._registry
        )
        self._outbox = {
            name: Gauge(f"dermserve_outbox_{name}", text, registry=self._registry, multiprocess_mode="mostrecent")
            for name, text in (
                ("pending", "Deliveries of results on their way."),
                ("failed", "Deliveries of results given up, until they are sent again by command."),
                ("oldest_seconds", "Age of the oldest delivery on its way."),
            )
        }

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note one answered request. `route` is a template, never a path as sent."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).observe(seconds)

    def inferred(self, seconds: float) -> None:
        self._inference.observe(seconds)

    def predicted(self, *, refer: bool, abstained: bool) -> None:
        self._predictions.labels("abstained" if abstained else "refer" if refer else "no_refer").inc()

    def refused(self, code: str) -> None:
        """Note a refusal; `code` is one of the error tree's."""
        self._refused.labels(code).inc()

    def delivered(self, kind: str, outcome: str) -> None:
        """Note an attempt to deliver; `outcome` is delivered, postponed or failed."""
        self._deliveries.labels(kind, outcome).inc()

    def outbox(self, pending: float, failed: float, oldest_s: float) -> None:
        """Note what stands in the outbox; not a number where nobody knows."""
        for name, value in (("pending", pending), ("failed", failed), ("oldest_seconds", oldest_s)):
            self._outbox[name].set(value)

    def exposition(self) -> bytes:
        """All figures as text; of all worker processes where prometheus_client's own multiprocess mode is on."""
        # The library decides on this variable when it is imported; it cannot be passed in as a setting.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class MetricsMiddleware:
    """Times every request up to its last byte and files it under its route's template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, note_status)
        finally:
            self._metrics.requested(scope["method"], _route(scope), status, time.perf_counter() - started)


def _route(scope: Scope) -> str:
    if scope["path"].startswith("/static/"):
        return "/static"
    return str(getattr(scope.get("route"), "path", "unmatched"))
