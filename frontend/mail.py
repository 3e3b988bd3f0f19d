"""Mail to users: by SMTP where it is set, else into a file that the operator of the embedded stack can read."""

from __future__ import annotations

import asyncio
import logging
import os
import smtplib
import ssl
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from typing import Final
from urllib.parse import unquote, urlsplit

from dermserve.errors import StartupError
from dermserve.settings import Settings

LOG_FILE: Final = "logs/mail.log"
"""In the state folder: what would have been sent. It holds links that set passwords; only its owner may read it."""
_TIMEOUT_S: Final = 20
_AT_ONCE: Final = 2  # a mail server that hangs must not take the threads that hash passwords and images
_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_log = logging.getLogger(__name__)


class Mailer:
    """Sends plain text. A mail that cannot be sent is logged, without its text and addressee, and otherwise lost."""

    def __init__(self, settings: Settings) -> None:
        """Open no connection yet.

        Raises:
            StartupError: `smtp_url` is not one of smtp://, smtp+starttls:// and smtps://, or no address is set that links
                in mail can lead to.
        """
        self._sender = settings.mail_from
        # Of its own: a mail server that hangs must not take the threads in which passwords and images are checked.
        self._postman = ThreadPoolExecutor(1, thread_name_prefix="mail")
        self._file = settings.state_dir / LOG_FILE
        self._server = urlsplit(settings.smtp_url.get_secret_value()) if settings.smtp_url else None
        if self._server is not None and (self._server.scheme not in _PORTS or not self._server.hostname):
            raise StartupError("DERMSERVE_SMTP_URL is not like smtp+starttls://user:password@host:587.")
        if self._server is not None and settings.public_url is None:
            # What a request calls the server is the sender's choice: a link made of it could lead a reader anywhere.
            raise StartupError("Mail holds links: set DERMSERVE_PUBLIC_URL to the address that users see.")
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def send(self, to: str, subject: str, text: str) -> None:
        """Send a mail, or write it to the file."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._sender, to, subject
        message.set_content(text)
        try:
            async with self._gate:
                await asyncio.get_running_loop().run_in_executor(self._postman, self._deliver, message)
        except (OSError, smtplib.SMTPException) as error:
            _log.error("a mail could not be sent: %s", type(error).__name__)

    def _deliver(self, message: EmailMessage) -> None:
        server = self._server
        if server is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(f"{message.as_string()}\n")
            return
        host, port = server.hostname or "", server.port or _PORTS[server.scheme]
        trusted = (
            ssl.create_default_context()
        )  # smtplib's own takes any certificate, and a link would be read on the way
        connection = (
            smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT_S, context=trusted)
            if server.scheme == "smtps"
            else smtplib.SMTP(host, port, timeout=_TIMEOUT_S)
        )
        with connection:
            if server.scheme == "smtp+starttls":
                connection.starttls(context=trusted)
            if server.username:
                connection.login(unquote(server.username), unquote(server.password or ""))
            connection.send_message(message)
