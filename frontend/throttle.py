"""Limits on guessing, on registration and on sending, counted in the database: right across workers and replicas.

`limits` has the rules; the counts are in PostgreSQL because a restart must not forgive a guesser, and because what counts
in one process only would be as many limits as there are processes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute, parse
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter
from sqlalchemy import ColumnElement, case, delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from dermserve.errors import DatabaseUnavailable, RateLimited
from frontend.access import Caller
from frontend.database import Database
from frontend.identity.tokens import fingerprint
from frontend.identity.users import normal_email
from frontend.models import RateCount

Value = TypeVar("Value")

# Guesses count per account *and* client address: a stranger elsewhere cannot lock the owner out.
_GUESSES: Final = RateLimitItemPerMinute(10, 15)
_CODES: Final = RateLimitItemPerMinute(10, 15)
# Failures of one client address over all accounts; generous, because a hospital may sit behind one address.
_FAILURES: Final = RateLimitItemPerMinute(200, 15)
_RESETS: Final = RateLimitItemPerHour(5)  # mails to one account: further ones would only bury a link that is still good
_RESETS_ASKED: Final = RateLimitItemPerHour(60)
_LEASES_MAX: Final = 10_000
_LONGEST: Final = timedelta(hours=1)  # of all windows above
_A_MINUTE: Final = 60.0
_LEASES: Final = 60  # of a minute's images: a process asks the database this often, not for every image


class Throttle:
    """Counts attempts; raises `RateLimited` when there were too many.

    `images` a minute is what one sender may send, `registrations` a minute what may come from one network address.
    """

    def __init__(self, database: Database, *, images: int, registrations: int) -> None:
        self._limiter = FixedWindowRateLimiter(_Counts(database))
        self._images = RateLimitItemPerMinute(images)
        self._registrations = RateLimitItemPerMinute(registrations)
        self._lease = max(1, images // _LEASES)
        self._leased: dict[UUID, tuple[float, int]] = {}
        self._used_up: dict[UUID, float] = {}
        self._leasing: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def before_login(self, address: str, email: str) -> None:
        """Count an attempt before the password is looked at, so that parallel guesses count, too.

        Raises:
            RateLimited: too many attempts on this account or failures from this address.
        """
        address = _network(address)
        if not await self._limiter.test(_FAILURES, "failures", address):
            await self._refuse(_FAILURES, "failures", address)
        await self._hit(_GUESSES, "guesses", address, normal_email(email))

    async def after_login(self, address: str, email: str, *, success: bool) -> None:
        """Forget the attempts of someone who knew the password; count a failure against the address."""
        address = _network(address)
        if success:
            await self._limiter.clear(_GUESSES, "guesses", address, normal_email(email))
        else:
            await self._limiter.hit(_FAILURES, "failures", address)

    async def before_code(self, user_id: UUID) -> None:
        """Count a code of the second factor; only who knew the password comes this far.

        Raises:
            RateLimited: too many for this account.
        """
        await self._hit(_CODES, "codes", str(user_id))

    async def before_password(self, caller: Caller) -> None:
        """Count a password that is asked for again: a session left open must not be a way to guess it.

        Raises:
            RateLimited: too many for this account.
        """
        await self._hit(_GUESSES, "passwords", str(caller.user_id))

    async def after_password(self, caller: Caller) -> None:
        """Forget the attempts of someone who knew the password."""
        await self._limiter.clear(_GUESSES, "passwords", str(caller.user_id))

    async def before_registration(self, address: str) -> None:
        """Count a registration.

        Raises:
            RateLimited: too many from this address.
        """
        await self._hit(self._registrations, "registrations", _network(address))

    async def before_reset(self, address: str, email: str) -> None:
        """Count a mail with a link, whether or not there is such an account.

        Wherever they are asked for: else many addresses together could fill somebody's mailbox. It locks nobody out, since
        what was mailed to them within the hour is still good.

        Raises:
            RateLimited: too many from this address, or for this account.
        """
        await self._hit(_RESETS_ASKED, "resets asked", _network(address))
        await self._hit(_RESETS, "resets", normal_email(email))

    async def before_image(self, caller: Caller) -> None:
        """Count an image against its key or DICOM node, or against a person.

        A process takes a sixtieth of a minute's images at a time from the database and uses them up by itself: all
        processes together never let more through than the limit, and may let through a little less.

        Raises:
            RateLimited: too many within this minute.
        """
        sender = caller.key_id or caller.sender_id or caller.user_id
        self._refuse_at_once(sender)
        if not self._use_lease(sender):
            # One asks for all who come at the same moment, or each would take a lease of its own.
            async with self._leasing.setdefault(sender, asyncio.Lock()):
                self._refuse_at_once(sender)
                if not self._use_lease(sender):
                    await self._lease_more(sender)

    def _use_lease(self, sender: UUID) -> bool:
        ends, left = self._leased.get(sender, (0.0, 0))
        if left == 0 or time.time() >= ends:
            return False
        self._leased[sender] = (ends, left - 1)
        return True

    def _refuse_at_once(self, sender: UUID) -> None:
        """What is left of a batch is refused without asking the database for each of its images."""
        left_s = self._used_up.get(sender, 0.0) - time.monotonic()
        if left_s > 0:
            raise _too_many(left_s)

    async def _lease_more(self, sender: UUID) -> None:
        granted = await self._limiter.hit(self._images, "images", str(sender), cost=self._lease)
        window = await self._limiter.get_window_stats(self._images, "images", str(sender))
        if granted:
            self._leased = _bounded(self._leased, lambda lease: lease[0] > time.time())
            self._leased[sender] = (window.reset_time, self._lease - 1)
            return
        # However far the clock was set back: no window is longer.
        left_s = min(_A_MINUTE, window.reset_time - time.time())
        self._used_up = _bounded(self._used_up, lambda until: until > time.monotonic())
        self._used_up[sender] = time.monotonic() + left_s
        raise _too_many(left_s)

    async def _hit(self, item: RateLimitItem, *identifiers: str) -> None:
        if not await self._limiter.hit(item, *identifiers):
            await self._refuse(item, *identifiers)

    async def _refuse(self, item: RateLimitItem, *identifiers: str) -> None:
        window = await self._limiter.get_window_stats(item, *identifiers)
        raise _too_many(window.reset_time - time.time())


class _Counts(Storage):
    """Fixed windows in the table `rate_counts`, as `limits` wants a storage.

    The database's clock alone tells when one is over: those of several hosts differ.
    """

    STORAGE_SCHEME = ["dermserve"]  # noqa: RUF012  as the base class declares it

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    @property
    def base_exceptions(self) -> type[Exception]:
        return DatabaseUnavailable

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        # Not now(), the transaction's beginning: who waited for a row would see a window that ends too late.
        ends = func.clock_timestamp() + timedelta(seconds=expiry)
        over = _over(timedelta(seconds=expiry))
        new = insert(RateCount).values(key=_kept(key), count=amount, expires_at=ends)
        query = new.on_conflict_do_update(
            index_elements=[RateCount.key],
            set_={
                "count": case((over, amount), else_=RateCount.count + amount),
                "expires_at": case((over, ends), else_=RateCount.expires_at),
            },
        ).returning(RateCount.count)
        async with self._database.transaction() as session:
            count = (await session.execute(query)).scalar_one()
        if count == amount:  # a window has begun: time to sweep
            await self._sweep()
        return count

    async def _sweep(self) -> None:
        # What another process is about to use again is left to it, or two sweeps could wait for each other for good.
        over = select(RateCount.key).where(_over(_LONGEST)).with_for_update(skip_locked=True)
        async with self._database.transaction() as session:
            await session.execute(delete(RateCount).where(RateCount.key.in_(over.scalar_subquery())))

    async def get(self, key: str) -> int:
        row = await self._row(key)
        return row.count if row else 0

    async def get_expiry(self, key: str) -> float:
        row = await self._row(key)
        return row.expires_at.timestamp() if row else time.time()

    async def _row(self, key: str) -> RateCount | None:
        query = select(RateCount).where(RateCount.key == _kept(key), ~_over(_window(key)))
        async with self._database.transaction() as session:
            return await session.scalar(query)

    async def check(self) -> bool:
        await self._database.check()
        return True

    async def reset(self) -> int | None:
        async with self._database.transaction() as session:
            await session.execute(delete(RateCount))
        return None

    async def clear(self, key: str) -> None:
        async with self._database.transaction() as session:
            await session.execute(delete(RateCount).where(RateCount.key == _kept(key)))


def _over(window: timedelta) -> ColumnElement[bool]:
    """Whether a row's window is over; so it is, too, where it would end later than one that began now.

    Then the clock was set back since, and what was counted would else bar its sender for as long as it was put back.
    """
    now = func.clock_timestamp()
    return or_(RateCount.expires_at <= now, RateCount.expires_at > now + window)


def _window(key: str) -> timedelta:
    """How long a window of this key is; `limits` ends its keys with amount, number and unit."""
    amount, number, unit = key.rsplit("/", 3)[1:]
    return timedelta(seconds=parse(f"{amount} per {number} {unit}").get_expiry())


def _too_many(left_s: float) -> RateLimited:
    seconds = max(1, math.ceil(left_s))
    return RateLimited("Too many attempts. Please try again in a few minutes.", retry_after=seconds)


def _bounded(found: dict[UUID, Value], kept: Callable[[Value], bool]) -> dict[UUID, Value]:
    """Without what is over, once there is much."""
    return {key: value for key, value in found.items() if kept(value)} if len(found) > _LEASES_MAX else found


def _network(address: str) -> str:
    """What counts as one sender: an IPv4 address, or the 64 bits of an IPv6 address that a network is given.

    Whoever has a network has 2^64 addresses in it (RFC 4291 §2.5.4), and would have as many limits.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a server on a Unix socket knows none
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _kept(key: str) -> str:
    """Addresses are personal data and may be of any length: what is stored is their fingerprint."""
    return fingerprint(key).hex()
