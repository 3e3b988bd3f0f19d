from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg
import pytest

from deploy.postgres import Postgres, create_database
from dermserve.settings import Settings


def postgres(state: Path) -> Postgres:
    (state / "logs").mkdir(parents=True, exist_ok=True)
    return Postgres(Settings(state_dir=state), os.environ)


async def query(server: Postgres, sql: str) -> object:
    child = server.child()
    await child.start()
    try:
        for _ in range(100):
            try:
                await create_database(server.url)
                break
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.1)
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()
    finally:
        await child.stop()


def test_it_starts_from_nothing_and_keeps_what_it_holds(tmp_path: Path) -> None:
    server = postgres(tmp_path)
    server.prepare()
    asyncio.run(query(server, "CREATE TABLE kept AS SELECT 7 AS n"))
    again = postgres(tmp_path)
    again.prepare()
    assert asyncio.run(query(again, "SELECT n FROM kept")) == 7


def test_a_cluster_cut_off_while_being_made_is_made_again(tmp_path: Path) -> None:
    half = tmp_path / "postgres.unfinished"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    server = postgres(tmp_path)
    server.prepare()
    assert not half.exists()
    assert str(asyncio.run(query(server, "SELECT version()"))).startswith("PostgreSQL 1")


def test_a_state_folder_with_a_long_name_still_gets_a_socket(tmp_path: Path) -> None:
    state = tmp_path / ("a" * 60) / ("b" * 60)
    server = postgres(state)
    assert len(str(server.sockets)) < 90
    server.prepare()
    assert asyncio.run(query(server, "SELECT 1")) == 1


@pytest.mark.parametrize("name", ["with space", "a&host=b", "50%25 ü"])
def test_a_state_folder_of_any_name_works(tmp_path: Path, name: str) -> None:
    server = postgres(tmp_path / name)
    server.prepare()
    assert asyncio.run(query(server, "SELECT 1")) == 1


def test_strangers_need_the_password(tmp_path: Path) -> None:
    server = postgres(tmp_path)
    server.prepare()
    assert (tmp_path / "postgres.password").stat().st_mode & 0o077 == 0
    password = (tmp_path / "postgres.password").read_text().strip()

    class Stranger:
        child = server.child
        url = server.url.replace(password, "guess")

    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(query(Stranger(), "SELECT 1"))  # type: ignore[arg-type]
