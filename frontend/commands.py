"""`dermserve admin`: accounts and keys from the command line, also while the stack runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TextIO

import click

from dermserve.errors import RequestInvalid
from dermserve.settings import Settings
from frontend import audit, deletions, destination_commands
from frontend.access import Role
from frontend.database import Database, database_url, migrate, run
from frontend.dicom.senders import Senders
from frontend.identity.keys import Keys
from frontend.identity.second_factor import SecondFactor
from frontend.identity.users import Users
from frontend.rotation import reseal
from frontend.vault import Vault


@click.group()
def admin() -> None:
    """Users, API keys, DICOM senders, and a database's schema. Works while the stack runs.

    \b
    Examples:
      dermserve admin create-user ada@example.org
      dermserve admin create-api-key --name gateway
    """


@admin.command("create-user")
@click.argument("email")
@click.option("--role", type=click.Choice([role.value for role in Role]), default="clinician", show_default=True)
@click.option("--admin", "role", flag_value="admin", help="Make an administrator: the same as --role admin.")
@click.password_option(help="Asked for when not given; at least 12 characters.")
def create_user(email: str, role: str, password: str) -> None:
    """Create a user who can log in."""

    async def create(database: Database) -> str:
        return (await Users(database).register(email, password, role=Role(role))).email

    click.echo(f"Created user {run(create)}")


@admin.command("create-api-key")
@click.option("--name", required=True, help="What the key is for, for example 'gateway'.")
@click.option("--user", "--owner", "email", help="E-mail of the owner; default: a service account of the key's name.")
def create_api_key(name: str, email: str | None) -> None:
    """Create an API key and print it as the last word; it is not shown again.

    Without --user it belongs to a service account of its own name, which cannot log in: keys of one name share their
    results (to replace a key), keys of different names do not see each other's. With --user, a name that is in use
    is refused.

    \b
    Example:
      KEY=$(dermserve admin create-api-key --name gateway | awk '{print $NF}')
    """

    async def create(database: Database) -> str:
        users, keys = Users(database), Keys(database)
        owner = await (users.by_email(email) if email else users.service(name))
        key = await keys.create(owner.user_id, name, another=email is None)
        return f"API key '{name}' of {owner.email}, shown only now: {key}"

    click.echo(run(create))


@admin.command("allow-sender")
@click.argument("ae_title")
@click.option("--network", "networks", multiple=True, required=True, help="It calls from here: CIDR; may come again.")
@click.option("--user", "--owner", "email", help="Whose its results become; default: a service account of its name.")
@click.option("--report-to", metavar="HOST:PORT", help="Where it takes reports of storage commitment.")
def allow_sender(ae_title: str, networks: tuple[str, ...], email: str | None, report_to: str | None) -> None:
    """Let a DICOM node send images by C-STORE.

    As soon as one sender is allowed, no other node is let in, those of this machine included.

    \b
    Examples:
      dermserve admin allow-sender GATEWAY1 --network 10.20.0.0/24
      dermserve admin allow-sender DERM_PACS --network 10.20.1.7 --report-to 10.20.1.7:104 --user pacs@example.org
    """

    async def allow(database: Database) -> str:
        users = Users(database)
        owner = await (users.by_email(email) if email else users.service(ae_title))
        await Senders(database).allow(owner.user_id, ae_title, networks, _address(report_to))
        return owner.email

    click.echo(f"{ae_title} may send from {', '.join(networks)}; its results belong to {run(allow)}")


@admin.command("senders")
def list_senders() -> None:
    """Print the DICOM nodes that may send: AE title, networks, owner, and where reports of storage commitment go.

    \b
    Example:
      dermserve admin senders
    """
    for sender, owner in run(lambda database: Senders(database).all()):
        report_to = f"{sender.host}:{sender.port}" if sender.host else "-"
        click.echo(f"{sender.ae_title}\t{','.join(sender.networks)}\t{owner}\t{report_to}")


@admin.command("remove-sender")
@click.argument("ae_title")
def remove_sender(ae_title: str) -> None:
    """Let a DICOM node send no more, within a second; its results stay.

    \b
    Example:
      dermserve admin remove-sender GATEWAY1
    """
    run(lambda database: Senders(database).remove(ae_title))
    click.echo(f"{ae_title} may send no more.")


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise RequestInvalid(f"Not an address like 10.20.1.7:104: {text}")
    return host.strip("[]"), int(port)


@admin.command("reset-second-factor")
@click.argument("email")
def reset_second_factor(email: str) -> None:
    """Let a user who lost their phone log in with the password alone, and set up another one."""

    async def reset(database: Database) -> str:
        user = await Users(database).by_email(email)
        await SecondFactor(database, Vault.of(Settings())).reset(user)
        return user.email

    click.echo(f"The second factor of {run(reset)} is off.")


@admin.command("rotate-secret")
def rotate_secret() -> None:
    """Seal what is kept secret with the newest of several keys; exit status 1 if some of it opens with none.

    The keys are those of DERMSERVE_SECRET_KEY, or of secret.key in the state folder, one a line; the newest comes first.
    The servers must have been started with both.

    \b
    Example:
      DERMSERVE_SECRET_KEY=$NEW,$OLD dermserve admin rotate-secret
    """
    anew, lost = run(lambda database: reseal(database, Vault.of(Settings())))
    click.echo(f"Sealed anew with the newest key: {anew}.")
    if lost:
        raise click.ClickException(f"What none of the keys opens: {lost}. Is a key missing?")
    click.echo("The older keys are needed only for backups of before.")


@admin.command("verify-audit")
@click.option("--count", type=click.IntRange(0), help="Rows that an earlier run printed …")
@click.option("--head", help="… and its hash: tells whether rows were cut off at the end since.")
def verify_audit(count: int | None, head: str | None) -> None:
    """Check that nobody altered the audit; exit status 1 if somebody did.

    \b
    Examples:
      dermserve admin verify-audit
      dermserve admin verify-audit --count 1204 --head 5d3c…
    """
    verdict = run(lambda database: audit.verify(database, count=count, head=head))
    rows = "1 row is" if verdict.count == 1 else f"{verdict.count} rows are"
    click.echo(f"{rows} whole; the hash of the last is {verdict.head}")
    if verdict.fault:
        raise click.ClickException(verdict.fault)


@admin.command("deletions")
@click.option("--since", type=click.DateTime(), required=True, help="When the backup was taken (UTC).")
def list_deletions(since: datetime) -> None:
    """Print what was deleted since a backup, to be deleted again from it once it is restored.

    \b
    Example:
      dermserve admin deletions --since 2026-11-01T03:00:00 > deletions.txt
    """
    for line in run(lambda database: deletions.noted(database, since.replace(tzinfo=UTC))):
        click.echo(line)


@admin.command("repeat-deletions")
@click.argument("file", type=click.File())
def repeat_deletions(file: TextIO) -> None:
    """Delete from a restored database what FILE, printed by `deletions` before, names.

    \b
    Example:
      dermserve admin repeat-deletions deletions.txt
    """
    click.echo(f"Deleted {run(lambda database: deletions.repeat(database, file))} rows.")


@admin.command("migrate")
def migrate_database() -> None:
    """Bring the database's schema to this version; `dermserve serve` does so by itself."""
    migrate(database_url(Settings()))
    click.echo("The database is up to date.")


destination_commands.register(admin)
