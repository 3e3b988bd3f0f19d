"""Limits on guessing passwords and on mass registration. In memory: per process, gone with a restart."""

from __future__ import annotations

import math
import time
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from dermserve.errors import RateLimited
from frontend.accounts import normal_email

# Guesses count per account *and* client address: a stranger elsewhere cannot lock the owner out.
_GUESSES: Final = RateLimitItemPerMinute(10, 15)
# Failures of one client address over all accounts; generous, because a hospital may sit behind one address.
_FAILURES: Final = RateLimitItemPerMinute(200, 15)
_REGISTRATIONS: Final = RateLimitItemPerMinute(120)


class Throttle:
    """Counts attempts; raises `RateLimited` when there were too many."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def before_login(self, address: str, email: str) -> None:
        """Count an attempt before the password is looked at, so that parallel guesses count, too.

        Raises:
            RateLimited: too many attempts on this account or failures from this address.
        """
        if not await self._limiter.test(_FAILURES, address):
            await self._refuse(_FAILURES, address)
        if not await self._limiter.hit(_GUESSES, address, normal_email(email)):
            await self._refuse(_GUESSES, address, normal_email(email))

    async def after_login(self, address: str, email: str, *, success: bool) -> None:
        """Forget the attempts of someone who knew the password; count a failure against the address."""
        if success:
            await self._limiter.clear(_GUESSES, address, normal_email(email))
        else:
            await self._limiter.hit(_FAILURES, address)

    async def before_registration(self, address: str) -> None:
        """Count a registration.

        Raises:
            RateLimited: too many from this address.
        """
        if not await self._limiter.hit(_REGISTRATIONS, address):
            await self._refuse(_REGISTRATIONS, address)

    async def _refuse(self, item: RateLimitItem, *identifiers: str) -> None:
        window = await self._limiter.get_window_stats(item, *identifiers)
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        minutes = math.ceil(seconds / 60)
        raise RateLimited(
            f"Too many attempts. Please try again in {minutes} minute{'s' if minutes > 1 else ''}.", retry_after=seconds
        )
