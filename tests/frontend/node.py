"""The DICOM door of a test, and who sends to it."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context
from pynetdicom.association import Association

from dermserve.settings import Settings
from frontend.database import Database
from frontend.dicom.__main__ import serve
from frontend.dicom.outgoing import settle
from frontend.dicom.senders import Senders
from frontend.identity.users import Users
from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY, coded
from tests.frontend.conftest import Cluster, StandIn, make_card

NO_ANSWER = -1
EXPLICIT = "1.2.840.10008.1.2.1"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Door:
    """The process's own code in a thread; the model server is a stand-in."""

    def __init__(self, settings: Settings, stand_in: StandIn) -> None:
        self.settings = settings
        self.stand_in = stand_in
        self.error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(serve(self.settings, self.stand_in, self._stopped))
        except BaseException as error:
            self.error = error

    def start(self) -> Door:
        self._thread.start()
        deadline = time.monotonic() + 10
        while True:
            assert self.error is None, self.error
            try:
                socket.create_connection(("127.0.0.1", self.settings.dicom_port), timeout=1).close()
                return self
            except OSError:
                assert time.monotonic() < deadline, "the door did not open"
                time.sleep(0.02)

    def stop(self) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        return time.monotonic() - started

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.settings.dicom_port

    def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        return rows(self.settings, query, *arguments)


def settings_of(cluster: Cluster, folder: Path, **changes: Any) -> Settings:
    """With a database of their own, because who may send depends on all that is in it."""
    make_card(folder / "models")
    known = {"database_url": cluster.create(), "model_repository": folder / "models", "state_dir": folder / "state"}
    return Settings(**known, dicom_port=free_port(), **changes)


@contextmanager
def opened(settings: Settings) -> Iterator[Door]:
    door = Door(settings, StandIn()).start()
    yield door
    door.stop()


def rows(settings: Settings, query: str, *arguments: object) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(settings.database_url)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


def photograph(pixels: Any, syntax: str = EXPLICIT, **attributes: Any) -> bytes:
    """A DICOM file as a gateway sends it: `coded`, with a study, a series and a patient."""
    frames = pixels if isinstance(pixels, list) else [pixels]
    named = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "PatientID": "MRN-4711"}
    return coded(frames, syntax, **(named | attributes))


def read(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


class Settled:
    """An association that loses no answer by a race of pynetdicom's own."""

    def __init__(self, association: Association) -> None:
        self._association = association

    def __getattr__(self, name: str) -> Any:
        if name.startswith("send_") or name == "release":
            settle(self._association)
        return getattr(self._association, name)


@contextmanager
def associated(
    door: Door,
    *,
    contexts: Sequence[Any] | None = None,
    calling: str = "GATEWAY",
    called: str = "DERMSERVE",
    **more: Any,
) -> Iterator[Any]:
    """An association of pynetdicom as SCU."""
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    wanted = list(contexts or [build_context(DERMOSCOPIC_PHOTOGRAPHY, EXPLICIT), build_context("1.2.840.10008.1.1")])
    association = ae.associate("127.0.0.1", door.settings.dicom_port, contexts=wanted, ae_title=called, **more)
    sender = Settled(association)
    try:
        yield sender
    finally:
        if association.is_established:
            sender.release()


def store(door: Door, *files: bytes, **more: Any) -> list[int]:
    """Send files over one association; the statuses of the answers."""
    datasets = [read(data) for data in files]
    pairs = dict.fromkeys((one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in datasets)
    with associated(door, contexts=[build_context(*pair) for pair in pairs], **more) as association:
        assert association.is_established
        return [association.send_c_store(one).get("Status", NO_ANSWER) for one in datasets]


def allow(settings: Settings, ae_title: str, *networks: str, owner: str = "gateway", **more: Any) -> None:
    async def run() -> None:
        database = Database(settings.database_url or "")
        account = await Users(database).service(owner)
        await Senders(database).allow(account.user_id, ae_title, networks or ["127.0.0.0/8"], **more)
        await database.close()

    asyncio.run(run())
