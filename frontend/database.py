"""PostgreSQL: where it is, transactions on it, and its schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import ClauseElement, Connection, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.compiler import SQLCompiler

from dermserve.errors import DatabaseUnavailable, Overloaded, StartupError
from dermserve.settings import Settings

URL_FILE = "database.url"
"""In the state folder while the embedded stack runs: the address of its PostgreSQL, for other commands."""

_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 0x6465726D  # "derm": any number will do as long as every replica takes the same one
_CONNECT_S = 5.0
_STATEMENT_S = 20.0
_DIRECT = 6  # connections beside SQLAlchemy's, of which results take four at most
Outcome = TypeVar("Outcome")
_DRIVER_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# SQLSTATE classes: connection exception, operator intervention (shutdown, starting up), insufficient resources, and
# what an operator can mend while we run: no such database, wrong password.
_PASSING_SQLSTATES = ("08", "57", "53", "3D", "28")


def database_url(settings: Settings) -> str:
    """The address from the settings, else that of the embedded database while it runs.

    Raises:
        StartupError: neither is known.
    """
    if settings.database_url is not None:
        return settings.database_url
    try:
        return (settings.state_dir / URL_FILE).read_text().strip()
    except FileNotFoundError as error:
        raise StartupError(
            f"No database is known: start `dermserve serve` (nothing runs on {settings.state_dir}), "
            "or set DERMSERVE_DATABASE_URL."
        ) from error


def engine_url(url: str) -> URL:
    """An ordinary `postgresql://` address as SQLAlchemy's asyncpg dialect wants it, `sslmode` included.

    Raises:
        StartupError: it is not the address of a PostgreSQL database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StartupError("DERMSERVE_DATABASE_URL is not an address like postgresql://user@host/name.") from error
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise StartupError(f"Only PostgreSQL is supported, not {parsed.drivername}.")
    query = {("ssl" if name == "sslmode" else name): value for name, value in parsed.query.items()}
    return parsed.set(drivername="postgresql+asyncpg", query=query)


class Statement:
    """The text of a statement with named parameters, made once: the work of SQLAlchemy, which the hot path saves."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        assert isinstance(compiled, SQLCompiler)
        self.text = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()

    def arguments(self, values: Mapping[str, object]) -> tuple[object, ...]:
        """The values in the order of the text's placeholders."""
        return tuple(values[name] for name in self._names)


class Database:
    """Connection pools that start empty and heal themselves."""

    def __init__(self, url: str) -> None:
        address = engine_url(url)
        limits = {"timeout": _CONNECT_S, "command_timeout": _STATEMENT_S}
        self._engine = create_async_engine(
            address,
            pool_pre_ping=True,
            hide_parameters=True,  # an error's text must not carry a password's hash or a patient's file name
            pool_size=10,
            max_overflow=10 - _DIRECT,
            pool_timeout=_CONNECT_S,
            connect_args=limits,
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        arguments = self._engine.dialect.create_connect_args(address)[1]
        self._direct = asyncpg.create_pool(
            min_size=0,
            max_size=_DIRECT,
            max_inactive_connection_lifetime=0,
            reset=_leave_as_it_is,
            **arguments,
            **limits,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One transaction, committed on leaving. Do nothing in it but talk to the database.

        Raises:
            DatabaseUnavailable: no answer, or the connection broke; whether a commit under way took place is then
                unknown, which is why every write here may be repeated.
            Overloaded: no connection of the pool became free in time.
        """
        try:
            async with self._sessions.begin() as session:
                yield session
        except PoolTimeout as error:
            raise Overloaded("All database connections are in use.", retry_after=2) from error
        except (DBAPIError, *_DRIVER_ERRORS) as error:
            if _passing(error):
                raise DatabaseUnavailable from error
            raise

    async def fetch_each(
        self, statement: Statement, values: Sequence[Mapping[str, object]]
    ) -> Sequence[Mapping[str, Any]]:
        """Run a statement for each of `values`, all in one transaction and one round trip; committed on return.

        The rows of all come in one sequence. Only for what may be repeated: where the connection turns out to be dead,
        another is tried, and the first may have done its work.

        Raises:
            DatabaseUnavailable, Overloaded: as of `transaction`.
        """
        arguments = [statement.arguments(one) for one in values]
        try:
            return await self._fetch_each(statement.text, arguments)
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            return await self._fetch_each(statement.text, arguments)

    async def _fetch_each(self, text: str, arguments: Sequence[tuple[object, ...]]) -> Sequence[Mapping[str, Any]]:
        try:
            direct = await self._direct  # opens no connection
            async with direct.acquire() as connection:
                try:
                    rows: Sequence[Mapping[str, Any]] = await connection.fetchmany(text, arguments)
                except asyncpg.InternalClientError:
                    connection.terminate()  # it does not know any more what it waits for
                    raise
                return rows
        except _DRIVER_ERRORS as error:
            if _passing(error):
                raise DatabaseUnavailable from error
            raise

    async def check(self) -> None:
        """Return when the database answers and holds the schema.

        Raises:
            DatabaseUnavailable: it does not, or not yet.
        """
        async with self.transaction() as session:
            if await session.scalar(text("SELECT to_regclass('alembic_version')")) is None:
                raise DatabaseUnavailable("The database holds no schema yet.")
            if await session.scalar(text("SELECT version_num FROM alembic_version")) != _newest():
                raise DatabaseUnavailable("The database holds another version's schema: run `dermserve admin migrate`.")

    async def close(self) -> None:
        await (await self._direct).close()
        await self._engine.dispose()


def run(work: Callable[[Database], Awaitable[Outcome]]) -> Outcome:
    """What a command does on the database that the environment's settings name; call it from synchronous code.

    Raises:
        StartupError: none is known.
    """

    async def on_it() -> Outcome:
        database = Database(database_url(Settings()))
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(on_it())


async def _leave_as_it_is(_connection: object) -> None:
    """In place of asyncpg's reset, a round trip after every use: no statement that goes this way changes a session."""


def _passing(error: Exception) -> bool:
    """Whether an error says that the database is away, rather than that the statement was wrong."""
    if isinstance(error, ValueError):  # asyncpg could not write a value, which it calls an InterfaceError, too
        return False
    # An InternalClientError is how asyncpg now and then takes the death of a connection.
    away = OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | OperationalError | InterfaceError
    if isinstance(error, away):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlstate", None) or "").startswith(_PASSING_SQLSTATES)


@cache
def _newest() -> str | None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return ScriptDirectory.from_config(config).get_current_head()


def migrate(url: str) -> None:
    """Bring the schema to the newest version; safe to call from several processes at once.

    Call it from synchronous code: it runs an event loop of its own.

    Raises:
        DatabaseUnavailable: the database does not answer.
        StartupError: `url` is not the address of a PostgreSQL database.
    """
    asyncio.run(_migrate(url))


async def _migrate(url: str) -> None:
    engine = create_async_engine(engine_url(url), poolclass=NullPool, connect_args={"timeout": _CONNECT_S})
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            await connection.run_sync(_upgrade)
    except (DBAPIError, *_DRIVER_ERRORS) as error:
        if _passing(error):
            raise DatabaseUnavailable from error
        raise
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    command.upgrade(migration_config(connection), "head")


def migration_config(connection: Connection) -> Config:
    """Alembic's configuration without an `alembic.ini`, on an open connection whose transaction is the caller's."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
