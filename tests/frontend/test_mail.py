"""Mail: where its links may lead, and to whom it is handed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from dermserve.errors import StartupError
from dermserve.settings import Settings
from frontend.mail import Mailer


def test_no_mail_server_without_an_address_for_its_links() -> None:
    with pytest.raises(StartupError, match="DERMSERVE_PUBLIC_URL"):
        Mailer(Settings(smtp_url=SecretStr("smtp://mail.example")))


class MailServer:
    """Speaks just enough SMTP, by TLS with a certificate that nobody vouches for; keeps what reaches it."""

    def __init__(self, folder: Path, *, starttls: bool) -> None:
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        made = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
        subprocess.run([*make, *made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        self.certificate = certificate
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._starttls = starttls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "smtp+starttls" if starttls else "smtps"
        self.url = f"{scheme}://user:secret@localhost:{self._listener.getsockname()[1]}"
        self.received = ""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        try:
            if self._starttls:
                self._talk(connection, until="STARTTLS")
            self._talk(self._context.wrap_socket(connection, server_side=True), until="QUIT", greet=not self._starttls)
        except OSError:
            connection.close()

    def _talk(self, connection: socket.socket, *, until: str, greet: bool = True) -> None:
        lines, data = connection.makefile("r", newline="\r\n"), False
        if greet:
            connection.sendall(b"220 here\r\n")
        for line in lines:
            self.received += line
            word = line.strip().upper()
            data = word == "DATA" or (data and word != ".")
            if word == "DATA" or not data:
                extended = word.startswith("EHLO")
                answers = b"250-here\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n" if extended else b"250 fine\r\n"
                start = {"DATA": b"354 go on\r\n", "STARTTLS": b"220 go on\r\n"}
                connection.sendall(b"235 in\r\n" if word.startswith("AUTH") else start.get(word, answers))
            if word == until:
                return


@pytest.mark.parametrize("starttls", [True, False])
@pytest.mark.parametrize("vouched", [True, False])
def test_mail_goes_only_to_a_server_that_proves_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, starttls: bool, vouched: bool
) -> None:
    server = MailServer(tmp_path, starttls=starttls)
    if vouched:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    mailer = Mailer(Settings(smtp_url=SecretStr(server.url), public_url="https://derm.example"))
    asyncio.run(mailer.send("ana@clinic.example", "A link", "https://derm.example/reset#token"))
    assert ("reset#token" in server.received) == vouched
    assert ("AUTH" in server.received) == vouched
