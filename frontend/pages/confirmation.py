"""Asks somebody who is logged in for what only the owner of the account knows, before something that weighs."""

from __future__ import annotations

from collections.abc import Mapping

from dermserve.errors import Forbidden
from frontend.dependencies import AtPage
from frontend.identity.users import normal_email


async def confirm(at: AtPage, form: Mapping[str, str]) -> None:
    """Return if whoever sits there is the owner of the account, as far as a password, or else its address, tells.

    The fields are those of `_confirmation.html`. Who comes by a hospital's sign-on has no password here.

    Raises:
        Forbidden: it is not the password, or not the address.
        RateLimited: too many attempts.
    """
    await at.services.throttle.before_password(at.user)
    account = await at.services.users.get(at.user)
    if account.password_hash is None:
        if normal_email(form.get("email", "")) != account.email:
            raise Forbidden("The address is not the one of this account.")
    elif not await at.services.users.is_password(at.user, form.get("password", "")):
        raise Forbidden("The password is not right.")
    await at.services.throttle.after_password(at.user)
