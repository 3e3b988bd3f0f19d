"""A hospital's own sign-on by OpenID Connect: authorization code with PKCE, through Authlib.

Authlib keeps state, nonce and code verifier in a session of the framework; here they travel in a sealed cookie that lives
for the ten minutes of a login, so that nothing has to be stored for strangers.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final, NamedTuple

import httpx2
from authlib.integrations.starlette_client import OAuth
from starlette.requests import Request
from starlette.responses import Response

from dermserve.errors import Unauthenticated, Unavailable
from dermserve.settings import Settings
from frontend.vault import Vault

_COOKIE: Final = "derm_sign_on"
PATH: Final = "/login/sign-on"
_LIFETIME_S: Final = 600
_PATIENCE_S: Final = 15.0
_PURPOSE: Final = "sign-on"
# Signatures by a key that only the sign-on has; "none", and HMAC with our own secret, would prove nothing.
_ALGORITHMS: Final = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)) | {"EdDSA"}


class Identity(NamedTuple):
    """Whom the sign-on names, and where the visitor wanted to go. `issuer` and `subject` together are unique."""

    issuer: str
    subject: str
    email: str
    target: str


class SignOn:
    """The sign-on of the settings; `name` is what the login page calls it, None where there is none."""

    def __init__(self, settings: Settings, vault: Vault, *, secure: bool) -> None:
        self.name = settings.oidc_name if settings.oidc_issuer else None
        self._issuer = settings.oidc_issuer or ""
        self._vault = vault
        self._secure = secure
        # With the prefix no sibling domain can plant a login of its own in a browser (RFC 6265bis §4.1.3.2).
        self._cookie = f"__Host-{_COOKIE}" if secure else _COOKIE
        self._claims = {
            "iss": {"essential": True, "values": [self._issuer]},
            "aud": {"essential": True, "value": settings.oidc_client_id},
        }
        secret = settings.oidc_client_secret
        self._client = OAuth().register(
            "hospital",
            client_id=settings.oidc_client_id,
            client_secret=secret.get_secret_value() if secret else None,
            server_metadata_url=f"{self._issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={"scope": "openid email", "code_challenge_method": "S256", "timeout": 10},
        )

    async def begin(self, request: Request, callback: str, target: str) -> Response:
        """Send the browser to the sign-on, which will send it back to `callback`.

        Raises:
            Unavailable: the sign-on does not answer.
        """
        request.scope["session"] = {}
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._check_provider()
                response: Response = await self._client.authorize_redirect(request, callback)
        except Exception as error:  # whatever another server's answer breaks in the library
            self._client.server_metadata.clear()  # or it would be remembered until the next start
            raise Unavailable("The sign-on is not answering. Please try again later.", retry_after=30) from error
        content = json.dumps({"session": request.scope["session"], "target": target}).encode()
        sealed = self._vault.seal(content, _PURPOSE, lifetime_s=_LIFETIME_S)
        response.set_cookie(
            self._cookie,
            sealed.hex(),
            max_age=_LIFETIME_S,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )
        return response

    def forget(self, response: Response) -> None:
        """Take the cookie of a login back."""
        response.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="lax")

    async def _check_provider(self) -> None:
        """Read once what the sign-on says of itself, and leave it no say in who it is and how it signs.

        Raises:
            ValueError: it is another issuer than the one that was set (OpenID Connect Discovery §4.3).
        """
        about = await self._client.load_server_metadata()
        if about.get("issuer") != self._issuer:
            raise ValueError("The sign-on calls itself by another issuer.")
        offered = about.get("id_token_signing_alg_values_supported") or ["RS256"]
        about["id_token_signing_alg_values_supported"] = [name for name in offered if name in _ALGORITHMS] or ["RS256"]

    async def finish(self, request: Request) -> Identity:
        """Whom the sign-on sent back; state, nonce, signature, issuer, audience and time are checked.

        Raises:
            Unauthenticated: nobody, or something about it is not right.
            Unavailable: the sign-on does not answer.
        """
        kept = self._kept(request)
        if kept is None:
            raise Unauthenticated("This login took too long, or was begun in another browser. Please try again.")
        request.scope["session"] = kept["session"]
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._check_provider()
                claims = (await self._client.authorize_access_token(request, claims_options=self._claims))["userinfo"]
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Unavailable("The sign-on is not answering. Please try again later.", retry_after=30) from error
        except Exception as error:
            raise Unauthenticated("The sign-on did not confirm who you are. Please try again.") from error
        if not claims.get("email") or claims.get("email_verified") is False:
            raise Unauthenticated("The sign-on gave no confirmed e-mail address.")
        return Identity(self._issuer, str(claims["sub"]), str(claims["email"]), str(kept["target"]))

    def _kept(self, request: Request) -> dict[str, object] | None:
        try:
            content = self._vault.open(bytes.fromhex(request.cookies.get(self._cookie, "")), _PURPOSE)
        except ValueError:
            return None
        return dict(json.loads(content)) if content else None
