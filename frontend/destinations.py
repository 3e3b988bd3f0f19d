"""Where an organisation's results go: added, listed and removed by whoever operates the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import UUID

from sqlalchemy import delete, func, select

from dermserve.errors import Conflict, NotFound, RequestInvalid
from frontend import audit, outbox
from frontend.audit import Action
from frontend.database import Database
from frontend.models import Delivery, Destination, Organisation
from frontend.networks import Networks
from frontend.outbox import Kind
from frontend.reports import webhook
from frontend.vault import Vault

PURPOSE: Final = "destination"
"""What a destination's secret is sealed for."""
_SCHEMES: Final = {Kind.C_STORE: ("dicom", "dicom+tls")}
_WEB: Final = ("https", "http")
_AE_TITLE: Final = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 §6.2, VR AE: no backslash, no control character
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")  # RFC 6750 §2.1


@dataclass(frozen=True)
class Listed:
    """A destination and its deliveries of the last 30 days; `oldest_s` is the age of the oldest on its way, in seconds."""

    destination: Destination
    organisation: str
    pending: int
    failed: int
    delivered: int
    oldest_s: float
    last_error: str | None


class Destinations:
    """Destinations in the database."""

    def __init__(self, database: Database, vault: Vault, networks: Networks) -> None:
        self._database = database
        self._vault = vault
        self._networks = networks

    async def add(
        self, organisation: str, kind: Kind, address: str, *, secret: str | None = None, allow_http: bool = False
    ) -> tuple[UUID, str | None]:
        """Send the results that an organisation's members get from now on; returns its id, and a webhook's secret if made here.

        Args:
            organisation: its name.
            kind: what is sent, and how.
            address: `dicom://AE_TITLE@host:port` or `dicom+tls://…` of a node, else a URL.
            secret: `whsec_…` that signs a webhook's messages, made here if None; a DICOMweb server's bearer token.
            allow_http: take an http address, too.

        Raises:
            RequestInvalid: an address or a secret that is not of this kind, or not allowed.
            NotFound: there is no such organisation.
            Conflict: it has this destination already.
        """
        address = check_address(kind, address, self._networks, allow_http=allow_http)
        made = webhook.new_secret() if kind in (Kind.WEBHOOK, Kind.FHIR) and secret is None else None
        _check_secret(kind, secret or made)
        sealed = self._vault.seal((secret or made or "").encode(), PURPOSE) if secret or made else None
        async with self._database.transaction() as session:
            owner = await session.scalar(
                select(Organisation).where(Organisation.name == organisation).with_for_update()
            )
            if owner is None:
                raise NotFound(f"There is no organisation named {organisation!r}.")
            same = select(Destination.id).where(
                Destination.organisation_id == owner.id, Destination.kind == kind, Destination.address == address
            )
            if await session.scalar(same) is not None:
                raise Conflict("This organisation has this destination already.")
            row = Destination(organisation_id=owner.id, kind=kind, address=address, secret=sealed)
            session.add(row)
            await session.flush()
            await audit.append(session, Action.DESTINATION_ADDED, actor=None, about=row.id)
        return row.id, made

    async def all(self) -> Sequence[Listed]:
        """By organisation, then in the order in which they were added."""
        failed, done = Delivery.failed_at.is_not(None), Delivery.delivered_at.is_not(None)
        counts = (
            select(
                Delivery.destination_id,
                func.count().filter(~failed, ~done).label("pending"),
                func.count().filter(failed).label("failed"),
                func.count().filter(done).label("delivered"),
                func.extract("epoch", func.now() - func.min(Delivery.since).filter(~failed, ~done)).label("oldest"),
            )
            .group_by(Delivery.destination_id)
            .subquery()
        )
        error = (
            select(Delivery.error)
            .where(Delivery.destination_id == Destination.id, ~done, Delivery.error.is_not(None))
            .order_by(failed.desc(), Delivery.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(Destination, Organisation.name, counts, error)
            .join(Organisation, Organisation.id == Destination.organisation_id)
            .outerjoin(counts, counts.c.destination_id == Destination.id)
            .order_by(Organisation.name, Destination.created_at)
        )
        async with self._database.transaction() as session:
            rows = (await session.execute(query)).all()
        return [
            Listed(one, name, pending or 0, failed or 0, delivered or 0, float(oldest or 0), last)
            for one, name, _, pending, failed, delivered, oldest, last in rows
        ]

    async def remove(self, destination: UUID) -> int:
        """Send nothing there any more; returns how many deliveries were still on their way or given up.

        What was kept of patients for these alone is erased with them.

        Raises:
            NotFound: there is no such destination.
        """
        open_ = select(func.count()).where(Delivery.destination_id == destination, Delivery.delivered_at.is_(None))
        gone = delete(Destination).where(Destination.id == destination).returning(Destination.id)
        async with self._database.transaction() as session:
            left = await session.scalar(open_) or 0
            if await session.scalar(gone) is None:
                raise NotFound("There is no such destination.")
            await session.execute(outbox.erase_patients())
            await audit.append(session, Action.DESTINATION_REMOVED, actor=None, about=destination)
        return left

    async def send_again(self, destination: UUID) -> tuple[int, int]:
        """Send what was given up once more and what waits for its next attempt now; returns how many of each.

        Raises:
            NotFound: there is no such destination.
        """
        async with self._database.transaction() as session:
            if await session.get(Destination, destination) is None:
                raise NotFound("There is no such destination.")
            counts = await outbox.send_again(session, destination)
            await audit.append(session, Action.DELIVERIES_RETRIED, actor=None, about=destination)
        return counts


def check_address(kind: Kind, address: str, networks: Networks, *, allow_http: bool = False) -> str:
    """The address, if results may be sent there.

    Raises:
        RequestInvalid: it is none of this kind, or in a network that nothing is sent to.
    """
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RequestInvalid("This is not an address.") from error
    if parts.scheme not in _SCHEMES.get(kind, _WEB) or not host or parts.fragment:
        raise RequestInvalid(f"The address of {kind} is like {_EXAMPLES[kind]}.")
    if parts.scheme == "http" and not allow_http:
        raise RequestInvalid("Results go over https; --allow-http allows an address without encryption.")
    if kind is Kind.C_STORE:
        _check_node(parts, port)
    elif parts.username is not None or (kind is Kind.STOW and parts.query):
        raise RequestInvalid("The address holds no user, password or, of DICOMweb, query.")
    try:
        numeric = ip_address(host)
    except ValueError:
        return address.strip()
    if not networks.permits(numeric):
        raise RequestInvalid(networks.refusal)
    return address.strip()


def _check_node(parts: SplitResult, port: int | None) -> None:
    title = unquote(parts.username or "")
    if port is None or parts.password is not None or parts.path.strip("/") or parts.query:
        raise RequestInvalid(f"The address of a DICOM node is like {_EXAMPLES[Kind.C_STORE]}.")
    if not _AE_TITLE.fullmatch(title) or not title.strip():
        raise RequestInvalid("An AE title has 1 to 16 characters, none of them a backslash.")


def _check_secret(kind: Kind, secret: str | None) -> None:
    if kind in (Kind.WEBHOOK, Kind.FHIR) and not (secret and webhook.is_secret(secret)):
        raise RequestInvalid("A webhook's secret is whsec_ and 24 to 64 bytes in base64.")
    if kind is Kind.STOW and secret is not None and not _TOKEN.fullmatch(secret):
        raise RequestInvalid("A bearer token holds letters, digits and . _ ~ + / = - only.")
    if kind is Kind.C_STORE and secret is not None:
        raise RequestInvalid("A DICOM node takes no secret; it is told who sends by TLS.")


_EXAMPLES: Final = {
    Kind.C_STORE: "dicom+tls://ARCHIVE@pacs.clinic.example:2762",
    Kind.STOW: "https://pacs.clinic.example/dicom-web",
    Kind.WEBHOOK: "https://clinic.example/results",
    Kind.FHIR: "https://clinic.example/fhir-results",
}
