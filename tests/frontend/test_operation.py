"""Health, figures, schema, start-up without its neighbours and recovery when they come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from dermserve.errors import DatabaseUnavailable, StartupError
from dermserve.settings import Settings
from frontend.app import create_app
from frontend.database import URL_FILE, Database, database_url, engine_url, migrate
from frontend.models import Base
from tests.frontend.conftest import Cluster, Server, make_card, new_key


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that a test may kill."""
    cluster = Cluster()
    cluster.start()
    yield cluster
    cluster.remove()


def problem_code(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return str(response.json()["code"])


def test_alive_and_ready(server: Server) -> None:
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "alive"}
    ready = httpx.get(f"{server.url}/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "parts": {"database": "ready", "inference": "ready"}}


def test_model_server_away_and_back(server: Server) -> None:
    server.stand_in.down = True
    response = httpx.get(f"{server.url}/readyz")
    assert (response.status_code, problem_code(response)) == (503, "inference_unavailable")
    assert response.json()["parts"] == {"database": "ready", "inference": "inference_unavailable"}
    assert int(response.headers["retry-after"]) > 0
    assert httpx.get(f"{server.url}/about").status_code == 200
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    server.stand_in.down = False
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_database_killed_and_back(own_cluster: Cluster, start: Callable[..., Server], jpegs: list[bytes]) -> None:
    url = own_cluster.create()
    server = start(database_url=url)
    headers = {"Authorization": f"Bearer {new_key(server.settings)}", "Content-Type": "image/jpeg"}

    def send(data: bytes) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/predictions", content=data, headers=headers, timeout=30)

    first = send(jpegs[0])
    assert first.status_code == 201
    own_cluster.stop()
    for response in (httpx.get(f"{server.url}/readyz"), send(jpegs[1])):
        assert (response.status_code, problem_code(response)) == (503, "database_unavailable")
        assert int(response.headers["retry-after"]) > 0
    page = httpx.get(f"{server.url}/history", cookies={"derm_session": "x"}, headers={"Accept": "text/html"})
    assert page.status_code == 503
    assert "The database is not answering" in page.text
    own_cluster.start()
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert (send(jpegs[0]).status_code, send(jpegs[0]).json()["id"]) == (200, first.json()["id"])
    assert send(jpegs[1]).status_code == 201


def test_database_dies_during_inference(own_cluster: Cluster, start: Callable[..., Server], jpegs: list[bytes]) -> None:
    server = start(database_url=own_cluster.create())
    headers = {"Authorization": f"Bearer {new_key(server.settings)}", "Content-Type": "image/jpeg"}

    infer = server.stand_in.infer

    async def infer_and_kill(*arguments: object, **options: object) -> object:
        answer = await infer(*arguments, **options)  # type: ignore[arg-type]
        await asyncio.to_thread(own_cluster.stop)
        return answer

    server.stand_in.infer = infer_and_kill  # type: ignore[method-assign,assignment]
    lost = httpx.post(f"{server.url}/v1/predictions", content=jpegs[0], headers=headers, timeout=30)
    assert (lost.status_code, problem_code(lost)) == (503, "database_unavailable")
    server.stand_in.infer = infer  # type: ignore[method-assign]
    own_cluster.start()
    assert httpx.post(f"{server.url}/v1/predictions", content=jpegs[0], headers=headers).status_code == 201


def test_starts_before_the_database_and_its_schema(own_cluster: Cluster, start: Callable[..., Server]) -> None:
    url = own_cluster.url("late")
    own_cluster.stop()
    server = start(database_url=url)
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    with pytest.raises(DatabaseUnavailable):
        migrate(url)
    own_cluster.start()
    assert problem_code(httpx.get(f"{server.url}/readyz")) == "database_unavailable"
    own_cluster.execute("CREATE DATABASE late")
    empty = httpx.get(f"{server.url}/readyz")
    assert empty.json()["detail"] == "The database holds no schema yet."
    migrate(url)
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_models_and_migrations_agree_and_migrating_twice_is_harmless(cluster: Cluster) -> None:
    url = cluster.create()
    migrate(url)

    def difference(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        return compare_metadata(context, Base.metadata)

    async def run() -> object:
        engine = create_async_engine(engine_url(url))
        async with engine.connect() as connection:
            found = await connection.run_sync(difference)
        await engine.dispose()
        return found

    assert asyncio.run(run()) == []


def test_metrics(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    def value(line: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return sum(float(found.split()[-1]) for found in text.splitlines() if found.startswith(line))

    route = (
        'dermserve_http_request_seconds_count{method="GET",route="/v1/predictions/{prediction_id:uuid}",status="200"}'
    )
    refused = 'dermserve_refused_total{code="unsupported_media_type"}'
    before = (
        value(route),
        value(refused),
        value("dermserve_predictions_total"),
        value("dermserve_inference_seconds_count"),
    )
    created = api.post("/v1/predictions", content=jpegs[0], headers={"Content-Type": "image/jpeg"}).json()
    api.get(f"/v1/predictions/{created['id']}")
    api.post("/v1/predictions", content=b"text", headers={"Content-Type": "image/jpeg"})
    after = (
        value(route),
        value(refused),
        value("dermserve_predictions_total"),
        value("dermserve_inference_seconds_count"),
    )
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 1, 1]


def test_metrics_stay_small(server: Server) -> None:
    for number in range(20):
        httpx.get(f"{server.url}/random-{number}")
        httpx.request(f"VERB{number}", f"{server.url}/")
    text = httpx.get(f"{server.url}/metrics").text
    assert "random-" not in text
    assert "VERB" not in text


def test_address_of_the_embedded_database(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, database_url=None)
    with pytest.raises(StartupError, match="start `dermserve serve`"):
        database_url(settings)
    (tmp_path / URL_FILE).write_text("postgresql://x@/y?host=/z\n")
    assert database_url(settings) == "postgresql://x@/y?host=/z"


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://h/d", "nonsense"])
def test_only_postgresql(url: str) -> None:
    with pytest.raises(StartupError):
        Database(url)


def test_no_start_without_a_card_or_its_operating_point(tmp_path: Path) -> None:
    settings = Settings(database_url="postgresql://x/y", model_repository=tmp_path)
    with pytest.raises(StartupError, match="no model card"):
        create_app(settings)
    make_card(tmp_path)
    with pytest.raises(StartupError, match="no operating point"):
        create_app(settings.model_copy(update={"operating_point": "unknown"}))


def test_slow_neighbours_do_not_hold_up_readiness(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stall() -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(server.stand_in, "ready", stall)
    started = time.monotonic()
    response = httpx.get(f"{server.url}/readyz", timeout=20)
    assert response.status_code == 503
    assert time.monotonic() - started < 10
