"""Rows of requests that wait at the same time share a transaction; each sender is told only of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

import asyncpg
import httpx
import pytest

from dermserve import sample
from dermserve.settings import Settings
from frontend.database import Database
from frontend.identity.keys import Keys
from tests.frontend.conftest import Cluster, Server, new_email, new_key

SENDERS = 12
_ON_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.filename ~ '{names}' THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON predictions DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def own_database(cluster: Cluster, start: Callable[..., Server]) -> Server:
    """A server with a database of its own, whose rules a test may change."""
    return start(database_url=cluster.create())


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that a test may kill."""
    cluster = Cluster()
    cluster.start()
    yield cluster
    cluster.remove()


@asynccontextmanager
async def stores_blocked(server: Server) -> AsyncIterator[asyncpg.Connection]:
    """Hold up every insertion into the history; its reader may go on, and the holder may write."""
    connection = await asyncpg.connect(server.settings.database_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE predictions IN EXCLUSIVE MODE")
    yield connection
    if not connection.is_closed():
        await transaction.commit()
        await connection.close()


async def send_while_blocked(
    server: Server,
    bodies: Sequence[bytes],
    keys: Sequence[str],
    before_release: Callable[[asyncpg.Connection], Awaitable[object]] | None = None,
) -> list[httpx.Response]:
    """Post all at once, numbered as `n.jpg`, let them gather at the database, then let them through."""
    server.stand_in.calls.clear()

    async def send(number: int) -> httpx.Response:
        key = keys[number % len(keys)]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg", "X-Filename": f"{number}.jpg"}
        return await client.post(f"{server.url}/v1/predictions", content=bodies[number], headers=headers)

    async with httpx.AsyncClient(timeout=30) as client:
        async with stores_blocked(server) as connection:
            sent = [asyncio.create_task(send(number)) for number in range(len(bodies))]
            while len(server.stand_in.calls) < len(bodies):  # noqa: ASYNC110  it tells nobody
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in sent), "no answer before the commit"
            if before_release is not None:
                await before_release(connection)
                await asyncio.sleep(0.5)
        return await asyncio.gather(*sent)


def stored(server: Server) -> list[asyncpg.Record]:
    """What the history holds: file names, and the transaction that stored each."""

    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(server.settings.database_url)
        try:
            found: list[asyncpg.Record] = await connection.fetch("SELECT id, filename, xmin FROM predictions")
            return found
        finally:
            await connection.close()

    return asyncio.run(fetch())


def different(count: int) -> list[bytes]:
    return [sample.jpeg(0) + bytes([number]) for number in range(count)]


def refuse_on_commit(cluster: Cluster, server: Server, *, names: str, code: str) -> None:
    assert server.settings.database_url
    cluster.execute(
        _ON_COMMIT.format(names=names, code=code), server.settings.database_url.partition("@/")[2].partition("?")[0]
    )


def test_rows_that_wait_share_a_transaction(own_database: Server) -> None:
    key = new_key(own_database.settings)
    answers = asyncio.run(send_while_blocked(own_database, different(SENDERS), [key]))
    assert [answer.status_code for answer in answers] == [201] * SENDERS
    rows = stored(own_database)
    assert {str(row["id"]): row["filename"] for row in rows} == {
        answer.json()["id"]: f"{number}.jpg" for number, answer in enumerate(answers)
    }
    # The first rows go at once; what came while they were blocked shares the next transactions.
    assert len({row["xmin"] for row in rows}) <= SENDERS // 3


def test_every_sender_is_told_of_its_own_image(own_database: Server) -> None:
    """New ones and repeats in one group, whose rows are not stored in the order in which they came."""
    key, bodies = new_key(own_database.settings), [body for body in different(SENDERS // 2) for _ in range(2)]
    answers = asyncio.run(send_while_blocked(own_database, bodies, [key]))
    assert [answer.json()["image"]["sha256"] for answer in answers] == [sha256(body).hexdigest() for body in bodies]
    assert Counter(answer.status_code for answer in answers) == {201: SENDERS // 2, 200: SENDERS // 2}
    for answer in answers:
        url = f"{own_database.url}/v1/predictions/{answer.json()['id']}"
        assert httpx.get(url, headers={"Authorization": f"Bearer {key}"}).json() == answer.json()


def test_a_row_that_is_refused_does_not_fail_its_neighbours(cluster: Cluster, own_database: Server) -> None:
    """Even one that is refused as late as can be, at the commit."""
    refuse_on_commit(cluster, own_database, names="^(5|9).jpg", code="23514")
    key = new_key(own_database.settings)
    answers = asyncio.run(send_while_blocked(own_database, different(SENDERS), [key]))
    assert [number for number, answer in enumerate(answers) if answer.status_code != 201] == [5, 9]
    assert {answers[5].json()["code"], answers[9].json()["code"]} == {"internal_error"}
    good = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert {str(row["id"]) for row in stored(own_database)} == good


def test_an_account_deleted_meanwhile_does_not_fail_others(own_database: Server) -> None:
    leaving = new_email()
    keys = [new_key(own_database.settings), new_key(own_database.settings, leaving)]

    async def leave(connection: asyncpg.Connection) -> None:
        await connection.execute("DELETE FROM users WHERE email = $1", leaving)

    answers = asyncio.run(send_while_blocked(own_database, different(SENDERS), keys, leave))
    assert [answer.status_code // 100 for answer in answers] == [2, 4] * (SENDERS // 2)
    assert len(stored(own_database)) == SENDERS // 2


def test_a_commit_that_fails_is_acknowledged_to_nobody(cluster: Cluster, own_database: Server) -> None:
    refuse_on_commit(cluster, own_database, names=".", code="53100")  # the disk is full
    key, bodies = new_key(own_database.settings), different(SENDERS)
    answers = asyncio.run(send_while_blocked(own_database, bodies, [key]))
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "database_unavailable")}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert stored(own_database) == []


def test_a_database_killed_before_the_commit_acknowledges_nothing_and_repeats_are_taken(
    own_cluster: Cluster, start: Callable[..., Server]
) -> None:
    server = start(database_url=own_cluster.create())
    key, bodies = new_key(server.settings), different(SENDERS)
    answers = asyncio.run(send_while_blocked(server, bodies, [key], lambda _: asyncio.to_thread(own_cluster.stop)))
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "database_unavailable")}
    own_cluster.start()
    assert stored(server) == []
    assert [answer.status_code for answer in asyncio.run(send_while_blocked(server, bodies, [key]))] == [201] * SENDERS


def test_the_same_bytes_in_one_group_are_one_result(own_database: Server) -> None:
    key = new_key(own_database.settings)
    answers = asyncio.run(send_while_blocked(own_database, [sample.jpeg(0)] * SENDERS, [key]))
    assert sorted(answer.status_code for answer in answers) == [200] * (SENDERS - 1) + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(stored(own_database)) == 1


def test_a_key_with_other_bytes_in_the_same_group_is_a_conflict(own_database: Server) -> None:
    headers = {"Authorization": f"Bearer {new_key(own_database.settings)}", "Idempotency-Key": "race"}

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, headers=headers) as client:
            async with stores_blocked(own_database):
                url = f"{own_database.url}/v1/predictions"
                sent = [asyncio.create_task(client.post(url, content=body)) for body in different(6)]
                await asyncio.sleep(0.5)
            return await asyncio.gather(*sent)

    assert sorted(answer.status_code for answer in asyncio.run(run())) == [201] + [409] * 5


def test_a_server_that_stops_answers_what_it_has_taken(own_database: Server) -> None:
    key = new_key(own_database.settings)
    stopping = threading.Thread(target=own_database.stop)

    async def stop(_: asyncpg.Connection) -> None:
        stopping.start()

    answers = asyncio.run(send_while_blocked(own_database, different(SENDERS), [key], stop))
    stopping.join()
    assert [answer.status_code for answer in answers] == [201] * SENDERS
    assert len(stored(own_database)) == SENDERS


def test_a_key_revoked_by_another_process_stops_within_a_second(server: Server, settings: Settings) -> None:
    key = new_key(settings)

    def status() -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{server.url}/v1/predictions", headers=headers).status_code

    async def revoke() -> None:
        assert settings.database_url
        database = Database(settings.database_url)
        keys = Keys(database)
        owner = await keys.caller(key)
        assert owner is not None
        await keys.revoke(owner.user_id, (await keys.all(owner.user_id))[0].id)
        assert await keys.caller(key) is None, "at once where it was revoked"
        await database.close()

    assert status() == 200
    asyncio.run(revoke())
    time.sleep(1)
    assert status() == 401


def test_a_connection_that_lost_its_thread_is_given_up_and_another_asked(
    own_database: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncpg does when PostgreSQL is killed at an unlucky moment."""
    well, failed = asyncpg.Connection.fetchmany, []

    async def lost_once(connection: asyncpg.Connection, *arguments: object, **options: object) -> object:
        if not failed:
            failed.append(connection)
            raise asyncpg.InternalClientError("cannot switch to state 13; another operation (2) is in progress")
        return await well(connection, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetchmany", lost_once)
    headers = {"Authorization": f"Bearer {new_key(own_database.settings)}", "Content-Type": "image/jpeg"}
    answer = httpx.post(f"{own_database.url}/v1/predictions", content=sample.jpeg(1), headers=headers)
    assert answer.status_code == 201
    assert failed[0].is_closed()
