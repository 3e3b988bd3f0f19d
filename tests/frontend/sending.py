"""What tests of results on their way out share: stored results, a receiver of webhooks, an Orthanc, a worker."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from dermserve.settings import Settings
from frontend.access import Caller
from frontend.database import Database
from frontend.delivery.courier import Couriers
from frontend.delivery.worker import deliver_for_ever
from frontend.destinations import Destinations
from frontend.identity.users import Users
from frontend.metrics import Metrics
from frontend.models import Organisation, Prediction, User
from frontend.networks import networks_of
from frontend.outbox import Kind, Outbox
from frontend.storage import Origin, Storage
from frontend.vault import Vault
from tests.frontend.conftest import PASSWORD, new_email

_REPOSITORY = Path(__file__).parents[2]
DERMOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.7"
MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7.4"
ORTHANC = Path("/usr/sbin/Orthanc")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def row(**changes: Any) -> dict[str, Any]:
    """Every column of a result but `created_at`."""
    found: dict[str, Any] = {
        "id": uuid4(),
        "owner_id": uuid4(),
        "idempotency_key": uuid4().hex,
        "filename": None,
        "lesion_id": None,
        "body_site": None,
        "note": None,
        "image_sha256": bytes(range(32)),
        "image_format": "dicom",
        "image_width": 600,
        "image_height": 450,
        "probabilities": [0.7, 0.1, 0.2, 0.15],
        "diagnoses": [0.15, 0.6, 0.03, 0.1, 0.05, 0.02, 0.02, 0.02, 0.01],
        "cam": [[0.0] * 10] * 10,
        "region": [0.0, 0.0, 1.0, 1.0],
        "operating_point": "sensitivity_95",
        "threshold": 0.12,
        "refer": True,
        "quality_flags": ["hairy"],
        "abstained": False,
        "model_name": "melanoma",
        "model_version": "1.2.3",
        "model_precision": "FP32",
        "model_runtime": "triton 2.51",
        "preprocessing": "0" * 64,
    }
    return found | changes


def prediction(**changes: Any) -> Prediction:
    """A stored result."""
    made = {"created_at": datetime(2026, 11, 23, 12, 30, 1, 250_000, tzinfo=UTC)}
    return Prediction(**row(**(made | changes)))


def origin(**changes: Any) -> Origin:
    """A new DICOM image in a new study."""
    names = ("sop_instance_uid", "study_uid", "series_uid")
    facts: dict[str, Any] = {"sop_class_uid": DERMOSCOPIC, **{name: f"2.25.{uuid4().int}" for name in names}}
    return Origin(**(facts | changes))


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Receiver:
    """A web server that keeps what it gets; `answer` says with which status and headers, after as long as it takes."""

    answer: Callable[[Request], tuple[int, Mapping[str, str]]] = lambda _: (204, {})
    requests: list[Request] = field(default_factory=list)
    said: bytes = b""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/results"

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]

    @contextmanager
    def listening(self, tls: ssl.SSLContext | None = None) -> Iterator[None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # whoever sends was killed
                    return
                request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                receiver.requests.append(request)
                status, headers = receiver.answer(request)
                with suppress(OSError):  # whoever asked may be gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(receiver.said)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


class Hospital:
    """An organisation with one sender, and what is on its way from it."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url
        self.settings = settings
        self.name = f"clinic {uuid4().hex[:8]}"
        self.database = Database(settings.database_url)
        self.vault = Vault.of(settings)
        self.metrics = Metrics()
        self.outbox = Outbox(self.database)
        self.destinations = Destinations(self.database, self.vault, networks_of(settings))
        self._storage = Storage(self.database)
        self.sender: Caller

    async def open(self) -> None:
        self.sender = await Users(self.database).register(new_email(), PASSWORD)
        async with self.database.transaction() as session:
            organisation = Organisation(name=self.name)
            session.add(organisation)
            await session.flush()
            user = await session.get(User, self.sender.user_id)
            assert user
            user.organisation_id = organisation.id

    async def add(self, kind: Kind, address: str, secret: str | None = None) -> tuple[UUID, str | None]:
        return await self.destinations.add(self.name, kind, address, secret=secret, allow_http=True)

    async def result(self, of: Origin | None = None, **changes: Any) -> UUID:
        """Store a result, as every door does."""
        stored = await self._storage.store(row(owner_id=self.sender.user_id, **changes), of)
        assert stored.created
        return stored.prediction.id

    async def fetch(self, query: str, **values: object) -> list[Any]:
        async with self.database.transaction() as session:
            return list((await session.execute(text(query), values)).all())

    async def until(self, true: Callable[[], Any], timeout_s: float = 20.0) -> None:
        """Return when `true` is, which may be asked of the database."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = true()
            if await found if asyncio.iscoroutine(found) else found:
                return
            assert time.monotonic() < deadline, "it did not come true"
            await asyncio.sleep(0.02)

    async def none_pending(self) -> bool:
        return (await self.outbox.figures()).pending == 0

    async def hurry(self) -> None:
        """Make due what waits for its next attempt."""
        await self.fetch(
            "UPDATE outbox SET due_at = now() WHERE delivered_at IS NULL AND failed_at IS NULL RETURNING id"
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker of this process."""
        couriers = Couriers(self.settings, self.vault)
        task = asyncio.create_task(deliver_for_ever(couriers, self.database, self.metrics, poll_s=0.02))
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def hospital(settings: Settings) -> AsyncIterator[Hospital]:
    made = Hospital(settings)
    await made.open()
    try:
        yield made
    finally:
        await made.database.close()


def worker_process(own: Settings) -> subprocess.Popen[bytes]:
    """A worker to be killed."""
    environment = {
        **os.environ,
        "DERMSERVE_DATABASE_URL": own.database_url or "",
        "DERMSERVE_STATE_DIR": str(own.state_dir),
        "DERMSERVE_MODEL__REPOSITORY": str(own.model_repository),
        "DERMSERVE_DELIVERY_NETWORKS": own.delivery_networks or "",
        "PYTHONPATH": str(_REPOSITORY),
    }
    command = [sys.executable, "-m", "tests.frontend.outbox_worker"]
    return subprocess.Popen(command, env=environment, cwd=_REPOSITORY)


class Orthanc:
    """Debian's Orthanc with DICOMweb, on loopback, with a folder of its own."""

    title = "ARCHIVE"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.http_port, self.dicom_port = (one.getsockname()[1] for one in sockets)
        for one in sockets:
            one.close()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def node(self) -> str:
        return f"dicom://{self.title}@127.0.0.1:{self.dicom_port}"

    def start(self) -> None:
        config = {
            "Name": "archive",
            "StorageDirectory": str(self._folder / "storage"),
            "IndexDirectory": str(self._folder / "storage"),
            "HttpPort": self.http_port,
            "HttpBindAddresses": ["127.0.0.1"],
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomPort": self.dicom_port,
            "DicomAet": self.title,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "OverwriteInstances": False,
            "Plugins": [str(DICOMWEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        file = self._folder / "orthanc.json"
        file.write_text(json.dumps(config))
        with (self._folder / "orthanc.log").open("ab") as log:
            command = [shutil.which("nice") or "nice", "-n", "12", str(ORTHANC), str(file)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                self.get("/system")
                return
            assert self._process.poll() is None, (self._folder / "orthanc.log").read_text()
            assert time.monotonic() < deadline, "Orthanc did not start"
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def file(self, instance: str) -> bytes:
        url = f"http://127.0.0.1:{self.http_port}/instances/{instance}/file"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: bytes = answer.read()
            return data

    def stored(self) -> dict[str, str]:
        """Orthanc's own id of every instance, by SOP instance UID."""
        found = {}
        for instance in self.get("/instances"):
            found[self.get(f"/instances/{instance}/simplified-tags")["SOPInstanceUID"]] = instance
        return found
