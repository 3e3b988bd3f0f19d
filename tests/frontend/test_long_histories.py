"""Lesions and histories of very many results: bounded pages, an honest plot, an order that an index serves."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event, inspect

from dermserve.settings import Settings
from frontend import lesions
from frontend.access import Caller
from frontend.database import Database
from frontend.history import Filter, History
from frontend.lesions import Lesions, Named, Score
from frontend.pages.trend import POINTS, trend
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, execute
from tests.frontend.test_lesions import send

DAY_ONE = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = ("melanoma", "1.0", "INT8"), ("melanoma", "2.0", "INT8")
# As many copies of a result as asked for, a minute apart, each older than the one before.
COPIES = """
    INSERT INTO predictions SELECT (jsonb_populate_record(p, jsonb_build_object('id', gen_random_uuid(),
      'idempotency_key', 'copy ' || n, 'created_at', p.created_at - n * interval '1 minute'))).*
    FROM predictions p, generate_series(1, $2) n WHERE p.id = $1::text::uuid"""


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    browser.client.headers["X-CSRF-Token"] = browser.csrf("/profile")
    yield browser
    browser.client.close()


def lesion_path(member: Browser) -> str:
    [found] = set(re.findall(r'href="(/lesions/[0-9a-f-]+)"', member.get("/lesions").text))
    return str(found)


def score(day: int, melanoma: float, model: tuple[str, str, str] = OLD, threshold: float = 0.12) -> Score:
    return Score(DAY_ONE + timedelta(days=day), melanoma, melanoma >= threshold, "sensitivity_95", threshold, model)


def test_curve_is_broken_where_the_model_changed() -> None:
    scores = [score(0, 0.1), score(10, 0.2), score(30, 0.6, NEW, 0.3), score(40, 0.5, NEW, 0.3)]
    plot = trend(scores, 4)
    assert [[mark.score for mark in piece] for piece in plot.pieces] == [scores[:2], scores[2:]]
    assert plot.changes == [50]
    assert [(line.x1, line.x2, line.y, line.threshold) for line in plot.thresholds] == [
        (0, 50, 88, 0.12),
        (50, 100, 70, 0.3),
    ]


def test_curve_is_broken_where_the_precision_changed() -> None:
    plot = trend([score(0, 0.1), score(4, 0.2, ("melanoma", "1.0", "FP32"))], 2)
    assert [len(piece) for piece in plot.pieces] == [1, 1]
    assert [(line.x1, line.x2) for line in plot.thresholds] == [(0, 100)]


def test_page_says_where_the_model_changed_and_draws_the_threshold(
    member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    results = [send(member, data, lesion="arm")["id"] for data in jpegs[:2]]
    page = member.get(lesion_path(member)).text
    assert "the model or its precision changed" not in page
    assert page.count("<polyline") == 1
    assert "threshold 12.0\u00a0%</text>" in page
    assert re.search(r'class="plot-threshold" x1="0.00" x2="100.00" y1="88.00" y2="88.00"', page)
    execute(server, "UPDATE predictions SET model_version = '9.9' WHERE id = $1::text::uuid", results[1])
    page = member.get(lesion_path(member)).text
    assert "the model or its precision changed" in page
    assert page.count("<polyline") == 2


def test_lesion_of_very_many_results(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    first = send(member, jpegs[0], lesion="arm")["id"]
    execute(server, COPIES, first, POINTS + 29)
    path: str | None = lesion_path(member)
    page = member.get(str(path)).text
    assert page.count('%" cy="') == POINTS
    assert f"The plot shows the latest {POINTS} of {POINTS + 30} assessed results" in page
    seen: list[str] = []
    while path is not None:
        page = member.get(path).text
        rows = re.findall(r'name="id" value="([0-9a-f-]+)"', page)
        assert len(rows) <= 25
        seen += rows
        further = re.search(r'href="(/lesions/[^"]+\?cursor=[^"]+)" rel="next"', page)
        path = further[1] if further else None
    assert len(seen) == len(set(seen)) == POINTS + 30


def test_list_of_very_many_lesions(member: Browser, server: Server) -> None:
    query = """INSERT INTO lesions (id, owner_id, name)
        SELECT gen_random_uuid(), u.id, 'spot ' || n FROM users u, generate_series(1, 120) n WHERE u.email = $1"""
    execute(server, query, member.email)
    seen: list[str] = []
    path = "/lesions"
    while path:
        page = member.get(path).text
        seen += re.findall(r">(spot \d+)</a>", page)
        further = re.search(r'href="(/lesions\?[^"]+)" rel="next"', page)
        path = further[1] if further else ""
    assert len(seen) == len(set(seen)) == 120
    assert re.findall(r">(spot \d+)</a>", member.get("/lesions?search=SPOT 77").text) == ["spot 77"]
    upload = member.get("/upload").text
    assert upload.count('<option value="spot') == 50
    assert member.get("/lesions?cursor=nonsense").status_code == 422


def test_so_many_lesions_and_no_more(member: Browser, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesions, "LESIONS_MAX", 2)
    assert [send(member, jpegs[n], lesion=f"spot {n}")["status"] for n in (0, 1)] == [201, 201]
    refused = send(member, jpegs[2], lesion="spot 2")
    assert (refused["status"], refused["code"]) == (409, "too_many_lesions")
    assert len(member.client.get("/v1/predictions").json()["items"]) == 2
    assert send(member, jpegs[2], lesion="spot 1")["status"] == 201
    last = send(member, jpegs[3])
    assert last["status"] == 201
    page = member.post(f"/predictions/{last['id']}/context", page="/profile", lesion="spot 3")
    assert (page.status_code, "There are too many lesions" in page.text) == (409, True)


def at_once(member: Browser, *uploads: tuple[bytes, str]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(send(member, one[0], lesion=one[1]))) for one in uploads
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_repeats_at_once_leave_no_lesion_without_images(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    server.stand_in.delay_s = 0.5
    answers = at_once(
        member, *((jpegs[0], f"spot {n}") for n in range(4)), (jpegs[1], "another"), (jpegs[1], "another")
    )
    assert sorted(one["status"] for one in answers) == [200, 200, 200, 200, 201, 201]
    [kept] = {one["context"]["lesion"] for one in answers} - {"another"}
    assert {one["context"]["lesion"] for one in answers} == {kept, "another"}
    page = member.get("/lesions").text
    assert set(re.findall(r'href="/lesions/[0-9a-f-]+">([^<]+)</a>', page)) == {kept, "another"}


def test_result_keeps_its_lesion_though_a_repeat_took_it_back(
    member: Browser, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = server.services().lesions
    ensure = service.ensure
    made: list[Named] = []

    async def ensure_and_withdraw_once(caller: Caller, name: str, site: str | None) -> Named:
        made.append(await ensure(caller, name, site))
        if len(made) == 1:
            await service.withdraw(caller, made[0].id)
        return made[-1]

    monkeypatch.setattr(service, "ensure", ensure_and_withdraw_once)
    kept = send(member, jpegs[0], lesion="arm")
    assert (kept["status"], kept["context"]["lesion"]) == (201, "arm")
    assert len(made) == 2
    assert "1" in re.findall(r'data-label="Images" class="number">(\d+)', member.get("/lesions").text)


def test_lesion_is_not_taken_back_from_under_a_result_that_is_being_stored(
    member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    result = send(member, jpegs[0])["id"]
    [user] = execute(server, "SELECT id FROM users WHERE email = $1", member.email)
    caller = Caller(UUID(str(user["id"])), "x")

    async def run() -> int:
        database = Database(str(server.settings.database_url))
        service = Lesions(database)
        made = await service.ensure(caller, "arm", None)
        connection = await asyncpg.connect(server.settings.database_url)
        storing = connection.transaction()
        await storing.start()
        await connection.execute("UPDATE predictions SET lesion_id = $2 WHERE id = $1::text::uuid", result, made.id)
        withdrawing = asyncio.create_task(service.withdraw(caller, made.id))
        await asyncio.sleep(0.3)
        assert not withdrawing.done()
        await storing.commit()
        await withdrawing
        left = await connection.fetchval("SELECT count(*) FROM predictions WHERE lesion_id = $1", made.id)
        await connection.close()
        await database.close()
        return int(left)

    assert asyncio.run(run()) == 1


def asked_for(settings: Settings, owner: UUID, wanted: Filter) -> tuple[list[tuple[str, Sequence[Any]]], list[str]]:
    """The statements of two pages of a history, and names of the columns that each row of the first holds."""

    async def run() -> tuple[list[tuple[str, Sequence[Any]]], list[str]]:
        database = Database(str(settings.database_url))
        statements: list[tuple[str, Sequence[Any]]] = []

        @event.listens_for(database._engine.sync_engine, "before_cursor_execute")
        def note(_c: Any, _cursor: Any, statement: str, parameters: Sequence[Any], *_rest: Any) -> None:
            statements.append((statement, parameters))

        history, caller = History(database, Lesions(database)), Caller(owner, "x")
        page = await history.page(caller, limit=2, wanted=wanted)
        await history.page(caller, limit=2, wanted=wanted, cursor=page.next_cursor)
        await database.close()
        return statements, sorted(inspect(page.items[0]).dict)

    return asyncio.run(run())


def test_order_by_melanoma_is_served_by_its_index_and_lists_read_no_maps(
    member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    for data in jpegs:
        send(member, data)
    [user] = execute(server, "SELECT id FROM users WHERE email = $1", member.email)
    statements, columns = asked_for(server.settings, UUID(str(user["id"])), Filter(sort="melanoma"))
    assert "probabilities" in columns
    assert "cam" not in columns

    async def plans() -> list[str]:
        connection = await asyncpg.connect(server.settings.database_url)
        await connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
        found = [await connection.fetch(f"EXPLAIN {text}", *given) for text, given in statements if "ORDER BY" in text]
        await connection.close()
        return ["\n".join(row[0] for row in rows) for rows in found]

    found = asyncio.run(plans())
    assert len(found) == 2
    for plan in found:
        assert "Index Scan using ix_predictions_melanoma" in plan, plan
        assert "Sort" not in plan.replace("Sort Key", "")
    assert "Index Cond" in found[1]
    assert "<" in found[1].split("Index Cond")[1].splitlines()[0], "the cursor is found in the index, not filtered"


def test_five_to_compare_are_not_silently_four(member: Browser, jpegs: list[bytes]) -> None:
    ids = []
    for number in range(5):
        headers = {"Idempotency-Key": str(number), "Content-Type": "image/jpeg"}
        ids.append(member.client.post("/v1/predictions", content=jpegs[0], headers=headers).json()["id"])
    page = member.get("/compare?" + "&".join(f"id={one}" for one in ids)).text
    assert "5 results were chosen, and at most 4 can be compared" in page
    assert page.count('class="overlay"') == 4
    assert "can be compared" not in member.get("/compare?" + "&".join(f"id={one}" for one in ids[:4])).text


def test_compared_results_of_different_models(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    ids = [send(member, data)["id"] for data in jpegs[:2]]
    path = f"/compare?id={ids[0]}&id={ids[1]}"
    assert "different models or precisions" not in member.get(path).text
    execute(server, "UPDATE predictions SET model_precision = 'INT8' WHERE id = $1::text::uuid", ids[0])
    assert "different models or precisions" in member.get(path).text


@pytest.mark.parametrize(("path", "times"), [("/predictions/{id}", 2), ("/history", 1), ("/lesions", 1)])
def test_rounding_never_hides_the_side_of_the_threshold(
    member: Browser, server: Server, jpegs: list[bytes], path: str, times: int
) -> None:
    result = send(member, jpegs[0], lesion="arm")
    query = "UPDATE predictions SET probabilities = '{0.5,0,0.5,0.11996}', refer = false WHERE id = $1::text::uuid"
    execute(server, query, result["id"])
    page = member.get(path.format(id=result["id"])).text
    assert page.count("11.996\u00a0%") >= times
    assert "12.0\u00a0%" not in page
    if "predictions" in path:
        assert "12.000\u00a0%" in page


def known(member: Browser, name: str, **headers: str) -> dict[str, Any]:
    found: dict[str, Any] = member.client.get("/lesions/named", headers={"X-Lesion": quote(name), **headers}).json()
    return found


def test_what_a_name_joins(member: Browser, jpegs: list[bytes]) -> None:
    assert known(member, "arm")["words"].strip() == "A new lesion: no image belongs to this name yet."
    for data in jpegs[:2]:
        send(member, data, lesion="Lluïsa’s arm", body_site="upper extremity")
    day = f"{datetime.now(UTC):%Y}"
    found = known(member, " Lluïsa’s   arm")
    assert (found["known"], found["site"]) == (True, "upper extremity")
    assert re.match(rf"Joins 2 images since \d+ \w+ {day}\. Body site: upper extremity\. ", found["words"])
    assert "Se une a 2 imágenes" in known(member, "Lluïsa’s arm", **{"Accept-Language": "es"})["words"]
    assert known(member, "ARM")["like"] == ["Lluïsa’s arm"]
    assert known(member, "%")["like"] == []
    assert known(member, "")["known"] is False
    assert member.client.get("/lesions/named", headers={"X-Lesion": quote("x" * 81)}).status_code == 422
