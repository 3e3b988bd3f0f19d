"""Which DICOM nodes may send, from where, and whose results their images become.

As long as no sender is configured and the door listens on this machine alone, any node of this machine may send; its
results belong to a service account of their own.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, exists, select
from sqlalchemy.exc import IntegrityError

from dermserve.errors import Conflict, NotFound, RequestInvalid
from frontend import audit
from frontend.access import Caller, Role, Scope
from frontend.audit import Action
from frontend.database import Database, Statement
from frontend.identity.users import Users
from frontend.models import Destination, Organisation, Sender, User

SERVICE: Final = "dicom"
"""Name of the service account that owns what this machine's own nodes send before any sender is configured."""

_AE_TITLE: Final = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 §6.2: no backslash, no control character
_TRUSTED_S: Final = 1.0  # a sender that was removed is refused within it
_MAX_TRUSTED: Final = 1000

_BY_AE_TITLE: Final = Statement(
    select(
        Sender.id.label("sender_id"),
        Sender.networks,
        Sender.host,
        Sender.port,
        User.id,
        User.email,
        User.role,
        User.organisation_id,
        Organisation.keeps_patients,
        exists().where(Destination.organisation_id == User.organisation_id).label("reports"),
    )
    .join(User, User.id == Sender.owner_id)
    .outerjoin(Organisation, Organisation.id == User.organisation_id)
    .where(Sender.ae_title == bindparam("ae_title"), User.disabled_at.is_(None))
)
_ANY: Final = Statement(select(exists().where(Sender.id.is_not(None)).label("any")))


@dataclass(frozen=True)
class Node:
    """A DICOM node that may send. `reports`: whether its organisation has anywhere for results to go."""

    caller: Caller
    ae_title: str
    report_to: tuple[str, int] | None = None
    reports: bool = False
    keeps_patients: bool = False


class Listed(NamedTuple):
    """A sender and its owner's e-mail."""

    sender: Sender
    owner: str


class Senders:
    """The allow-list in the database. `open_to_this_machine`: the door listens on a loopback address."""

    def __init__(self, database: Database, *, open_to_this_machine: bool = False) -> None:
        self._database = database
        self._open = open_to_this_machine
        self._trusted: dict[tuple[str, str], tuple[float, Node]] = {}

    async def admit(self, ae_title: str, address: str) -> Node | None:
        """The node of this AE title that calls from this address; None where it may not send."""
        asked = time.monotonic()
        trusted = self._trusted.get((ae_title, address))
        if trusted is not None and asked - trusted[0] < _TRUSTED_S:
            return trusted[1]
        node = await self._look_up(ae_title, address)
        self._trusted.pop((ae_title, address), None)
        if node is not None:
            if len(self._trusted) >= _MAX_TRUSTED:
                self._trusted.clear()
            self._trusted[ae_title, address] = (asked, node)
        return node

    async def _look_up(self, ae_title: str, address: str) -> Node | None:
        rows = await self._database.fetch_each(_BY_AE_TITLE, [{"ae_title": ae_title}])
        if not rows:
            return await self._of_this_machine(ae_title, address)
        [found] = rows
        if not _within(address, found["networks"]):
            return None
        caller = Caller(
            user_id=found["id"],
            email=found["email"],
            role=Role(found["role"]),
            organisation_id=found["organisation_id"],
            scopes=frozenset({Scope.PREDICT}),
            sender_id=found["sender_id"],
        )
        report_to = (found["host"], found["port"]) if found["host"] is not None else None
        return Node(caller, ae_title, report_to, found["reports"], bool(found["keeps_patients"]))

    async def _of_this_machine(self, ae_title: str, address: str) -> Node | None:
        if not self._open or not _address(address).is_loopback:
            return None
        [found] = await self._database.fetch_each(_ANY, [{}])
        if found["any"]:
            return None
        owner = await Users(self._database).service(SERVICE)
        scopes = frozenset({Scope.PREDICT})
        return Node(Caller(owner.user_id, owner.email, owner.role, scopes=scopes, sender_id=owner.user_id), ae_title)

    async def allow(
        self, owner: UUID, ae_title: str, networks: Iterable[str], report_to: tuple[str, int] | None = None
    ) -> None:
        """Let a node send.

        Args:
            owner: whose its results become.
            ae_title: what it calls itself.
            networks: as CIDR; a single address is a network of one.
            report_to: host and port where it takes reports of storage commitment.

        Raises:
            RequestInvalid: no AE title, no network, or no such.
            Conflict: the AE title is taken.
        """
        host, port = report_to or (None, None)
        row = Sender(owner_id=owner, ae_title=_title(ae_title), networks=_networks(networks), host=host, port=port)
        try:
            async with self._database.transaction() as session:
                session.add(row)
                await session.flush()
                await audit.append(session, Action.SENDER_ALLOWED, actor=owner, about=row.id)
        except IntegrityError as error:
            raise Conflict(f"The sender {row.ae_title} is there already; remove it first.") from error

    async def all(self) -> Sequence[Listed]:
        """By AE title."""
        query = select(Sender, User.email).join(User, User.id == Sender.owner_id).order_by(Sender.ae_title)
        async with self._database.transaction() as session:
            return [Listed(sender, email) for sender, email in (await session.execute(query)).all()]

    async def remove(self, ae_title: str) -> None:
        """Let a node send no more; its results stay.

        Raises:
            NotFound: there is no such sender.
        """
        query = delete(Sender).where(Sender.ae_title == ae_title.strip()).returning(Sender.id, Sender.owner_id)
        async with self._database.transaction() as session:
            removed = (await session.execute(query)).first()
            if removed is None:
                raise NotFound(f"There is no sender {ae_title}.")
            await audit.append(session, Action.SENDER_REMOVED, actor=removed.owner_id, about=removed.id)


def _title(text: str) -> str:
    title = text.strip()
    if not _AE_TITLE.fullmatch(title):
        raise RequestInvalid("An AE title has 1 to 16 characters of ASCII, without a backslash.")
    return title


def _networks(texts: Iterable[str]) -> list[str]:
    try:
        networks = [str(ipaddress.ip_network(text.strip())) for text in texts]
    except ValueError as error:
        raise RequestInvalid(f"Not a network: {error}.") from error
    if not networks:
        raise RequestInvalid("Please say from which network it sends.")
    return networks


def _within(address: str, networks: Sequence[str]) -> bool:
    peer = _address(address)
    return any(peer in ipaddress.ip_network(network) for network in networks)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 peer of a socket for both families is that IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address) if address.version == 6 else address
