"""`dermserve admin`: accounts and keys from the command line, also while the stack runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import click

from dermserve.settings import Settings
from frontend.accounts import Accounts
from frontend.database import Database, database_url, migrate


@click.group()
def admin() -> None:
    """Create users and API keys; bring a database's schema up to date. Works while the stack runs.

    \b
    Examples:
      dermserve admin create-user ada@example.org
      dermserve admin create-api-key --name gateway
    """


@admin.command("create-user")
@click.argument("email")
@click.option("--admin", "is_admin", is_flag=True, help="Make an administrator.")
@click.password_option(help="Asked for when not given; at least 12 characters.")
def create_user(email: str, is_admin: bool, password: str) -> None:
    """Create a user who can log in."""

    async def create(accounts: Accounts) -> str:
        return (await accounts.register(email, password, is_admin=is_admin)).email

    click.echo(f"Created user {_run(create)}")


@admin.command("create-api-key")
@click.option("--name", required=True, help="What the key is for, for example 'gateway'.")
@click.option("--user", "--owner", "email", help="E-mail of the owner; default: a service account of the key's name.")
def create_api_key(name: str, email: str | None) -> None:
    """Create an API key and print it as the last word; it is not shown again.

    Without --user it belongs to a service account of its own name, which cannot log in: keys of one name share their
    results (to replace a key), keys of different names do not see each other's.

    \b
    Example:
      KEY=$(dermserve admin create-api-key --name gateway | awk '{print $NF}')
    """

    async def create(accounts: Accounts) -> str:
        owner = await (accounts.by_email(email) if email else accounts.service(name))
        return f"API key '{name}' of {owner.email}, shown only now: {await accounts.create_key(owner.user_id, name)}"

    click.echo(_run(create))


@admin.command("migrate")
def migrate_database() -> None:
    """Bring the database's schema to this version; `dermserve serve` does so by itself."""
    migrate(database_url(Settings()))
    click.echo("The database is up to date.")


def _run(work: Callable[[Accounts], Awaitable[str]]) -> str:
    settings = Settings()

    async def run() -> str:
        database = Database(database_url(settings))
        try:
            return await work(Accounts(database, session_hours=settings.session_hours))
        finally:
            await database.close()

    return asyncio.run(run())
