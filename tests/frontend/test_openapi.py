"""The OpenAPI document holds: requests made up from it, good ones and bad ones, never meet an error of ours."""

from __future__ import annotations

from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.frontend.conftest import Server, new_key

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@schemathesis.serializer("multipart/related")
def related(ctx: Any, value: Any) -> bytes:
    """As made up: what well-formed ones meet is for the tests of that door."""
    return value if isinstance(value, bytes) else str(value).encode()


def operations(server: Server) -> list[Any]:
    found = schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations()
    return [one.ok() for one in found]


def test_no_request_meets_an_error_of_ours(running: Server) -> None:
    running.stand_in.reset()
    headers = {"Authorization": f"Bearer {new_key(running.settings)}"}
    statuses: dict[str, set[int]] = {}
    for operation in operations(running):

        @given(case=operation.as_strategy())
        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def try_out(case: Any) -> None:
            response = case.call(headers=headers)
            statuses.setdefault(case.operation.label, set()).add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        try_out()
    assert len(statuses) == len(operations(running))
    assert statuses["GET /v1/predictions"] >= {200, 422}
    assert statuses["POST /v1/predictions"] & {415, 422}


def test_strangers_get_nothing(running: Server) -> None:
    document = httpx.get(f"{running.url}/openapi.json").json()
    for path, operations in document["paths"].items():
        if path.startswith("/v1/"):
            url = running.url + path.replace("{prediction_id}", "0" * 32)
            for method in operations:
                assert httpx.request(method, url).status_code == 401, (method, path)
