"""`dermserve admin`: where results are sent, and how that goes."""

from __future__ import annotations

from datetime import timedelta
from typing import TextIO
from uuid import UUID

import click

from dermserve.errors import NotFound
from dermserve.settings import Settings
from frontend.database import Database, run
from frontend.destinations import Destinations, Listed
from frontend.networks import networks_of
from frontend.outbox import Kind
from frontend.vault import Vault


@click.command("add-destination")
@click.argument("kind", type=click.Choice([kind.value for kind in Kind]))
@click.argument("address")
@click.option("--organisation", required=True, help="Name of the organisation whose members' results are sent.")
@click.option(
    "--secret-file", type=click.File(), help="A webhook's whsec_… (made here if not given), or a DICOMweb bearer token."
)
@click.option("--allow-http", is_flag=True, help="Take an http:// address, without encryption.")
def add_destination(kind: str, address: str, organisation: str, secret_file: TextIO | None, allow_http: bool) -> None:
    """Send an organisation's results to ADDRESS, from the next one on.

    c-store and stow-rs send a DICOM structured report of each result of a DICOM image; webhook and fhir send a signed
    message of every result. Where a webhook's secret is made here, it is printed once, as the last word.

    \b
    Examples:
      dermserve admin add-destination --organisation 'Clinic' c-store dicom+tls://ARCHIVE@10.0.0.5:2762
      dermserve admin add-destination --organisation 'Clinic' stow-rs https://pacs.clinic.example/dicom-web --secret-file -
      dermserve admin add-destination --organisation 'Clinic' webhook https://clinic.example/results
      dermserve admin add-destination --organisation 'Clinic' fhir https://clinic.example/fhir-results
    """
    secret = secret_file.read().strip() if secret_file is not None else None

    async def add(database: Database) -> str:
        destinations = _destinations(database)
        added, made = await destinations.add(organisation, Kind(kind), address, secret=secret, allow_http=allow_http)
        return f"Results go to {added}" + (f"; its secret, shown only now: {made}" if made else "")

    click.echo(run(add))


@click.command("destinations")
def list_destinations() -> None:
    """List destinations with their deliveries: on their way, given up, and delivered within the last 30 days.

    \b
    Example:
      dermserve admin destinations
    """
    found = run(lambda database: _destinations(database).all())
    for one in found:
        click.echo(_line(one))
    if not found:
        click.echo("Results are sent nowhere.")


@click.command("remove-destination")
@click.argument("destination", type=click.UUID)
def remove_destination(destination: UUID) -> None:
    """Send nothing to DESTINATION, an id, any more; what is still on its way there is dropped.

    \b
    Example:
      dermserve admin remove-destination 5f0c7a52-3a1e-4a7e-9d0c-5a8f9a0d3b11
    """
    left = run(lambda database: _destinations(database).remove(destination))
    click.echo(f"Removed; {left} deliveries were dropped.")


@click.command("retry-deliveries")
@click.argument("destination", type=click.UUID, required=False)
@click.option("--all", "every", is_flag=True, help="To every destination.")
def retry_deliveries(destination: UUID | None, every: bool) -> None:
    """Send to DESTINATION again what was given up, and now what waits for its next attempt.

    \b
    Examples:
      dermserve admin retry-deliveries 5f0c7a52-3a1e-4a7e-9d0c-5a8f9a0d3b11
      dermserve admin retry-deliveries --all
    """
    if (destination is None) == (not every):
        raise click.UsageError("Name one destination, or say --all.")

    async def again(database: Database) -> tuple[int, int]:
        destinations = _destinations(database)
        named = [one.destination.id for one in await destinations.all()] if destination is None else [destination]
        failed = waiting = 0
        for one in named:
            try:
                counts = await destinations.send_again(one)
            except NotFound:
                if not every:  # of all, one may have been removed meanwhile
                    raise
                continue
            failed, waiting = failed + counts[0], waiting + counts[1]
        return failed, waiting

    failed, waiting = run(again)
    click.echo(f"Sent again: {failed} that were given up, {waiting} that waited.")


def register(admin: click.Group) -> None:
    """Hang these commands into `dermserve admin`."""
    for command in (add_destination, list_destinations, remove_destination, retry_deliveries):
        admin.add_command(command)


def _destinations(database: Database) -> Destinations:
    settings = Settings()
    return Destinations(database, Vault.of(settings), networks_of(settings))


def _line(one: Listed) -> str:
    row = one.destination
    counts = f"{one.pending} pending, {one.failed} failed, {one.delivered} delivered"
    age = f", the oldest for {timedelta(seconds=int(one.oldest_s))}" if one.pending else ""
    error = f"; last: {one.last_error}" if one.last_error else ""
    return f"{row.id}  {row.kind}  {row.address}  {one.organisation}: {counts}{age}{error}"
