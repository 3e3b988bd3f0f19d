"""Which addresses this server sends results to, so that nobody makes it talk to what only it can reach.

Without a list: everything but this machine itself, link-local addresses, where clouds hand out credentials, and what is
no address of one machine. Hospitals' private networks are where archives are; whoever wants less gives a list.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from dermserve.errors import StartupError
from dermserve.settings import Settings

Address = IPv4Address | IPv6Address
_METADATA: Final = (ip_network("fd00:ec2::254/128"), ip_network("100.100.100.200/32"))  # outside the link-local ranges
_NAT64: Final = ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


class Refused(Exception):
    """No address of this name may be sent to."""


class Networks:
    """`permitted`: networks in CIDR form; None for all but those that are always refused.

    Raises:
        StartupError: one of them is not a network.
    """

    refusal: Final = "Nothing is sent to this network; DERMSERVE_DELIVERY_NETWORKS names those that are permitted."

    def __init__(self, permitted: Sequence[str] | None) -> None:
        try:
            self._permitted = [ip_network(one) for one in permitted] if permitted is not None else None
        except ValueError as error:
            raise StartupError(f"DERMSERVE_DELIVERY_NETWORKS is not like 10.0.0.0/8,192.0.2.7/32: {error}") from error

    def permits(self, address: Address) -> bool:
        """Whether anything is sent there; an IPv4 address written as an IPv6 one is judged as what it is."""
        address = _plain(address)
        if self._permitted is not None:
            return any(address in network for network in self._permitted if network.version == address.version)
        return not (
            address.is_loopback
            or address.is_link_local
            or address.is_multicast
            or address.is_unspecified
            or address.is_reserved
            or any(address in network for network in _METADATA if network.version == address.version)
        )

    async def resolve(self, host: str, port: int) -> str:
        """One permitted address of a host, to be connected to as it is: a name asked twice may answer otherwise.

        Raises:
            OSError: the name has no address.
            Refused: none of its addresses is permitted.
        """
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = {str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found}
        permitted = sorted(address for address in addresses if self.permits(ip_address(address)))
        if not permitted:
            raise Refused
        return random.choice(permitted)  # noqa: S311  no secret: the next attempt may take another


def networks_of(settings: Settings) -> Networks:
    """The networks of the settings."""
    listed = settings.delivery_networks
    return Networks([part.strip() for part in listed.split(",") if part.strip()] if listed is not None else None)


def _plain(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
