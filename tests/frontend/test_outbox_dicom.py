"""Structured reports into real archives: Orthanc by C-STORE and STOW-RS, and nodes that refuse, hang up or ask for TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import random
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.uid import ComprehensiveSRStorage, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from dermserve.settings import Settings
from frontend.dicom.senders import Senders
from frontend.networks import Networks
from frontend.outbox import Kind
from frontend.reports.identity import uid
from tests.dermserve.encoded import waves
from tests.frontend.conftest import Cluster
from tests.frontend.node import associated, opened, photograph, read, settings_of
from tests.frontend.sending import DICOMWEB, ORTHANC, Hospital, Orthanc, Receiver, hospital, origin, worker_process

needs_orthanc = pytest.mark.skipif(not ORTHANC.exists() or not DICOMWEB.exists(), reason="Orthanc is not installed")


@pytest.fixture
def own(cluster: Cluster, settings: Settings) -> Settings:
    """Settings with a database of their own, by which results go to this machine."""
    return settings.model_copy(update={"database_url": cluster.create(), "delivery_networks": "127.0.0.0/8"})


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    running = Orthanc(tmp_path_factory.mktemp("orthanc"))
    running.start()
    yield running
    running.stop()


def run(own: Settings, work: Callable[[Hospital], Any]) -> None:
    async def on_it() -> None:
        async with hospital(own) as made:
            await work(made)

    asyncio.run(on_it())


def checked_by_others(file: Path) -> str:
    """What dsrdump reads; dciodvfy has nothing against it."""
    read = subprocess.run(["dsrdump", "+Pl", file], capture_output=True, text=True, check=True)
    assert not [line for line in read.stderr.splitlines() if line.startswith("E:")]
    if shutil.which("dciodvfy"):
        found = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        assert not [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
    return read.stdout


@needs_orthanc
@pytest.mark.parametrize("kind", [Kind.C_STORE, Kind.STOW])
def test_an_archive_gets_the_report_of_each_image(own: Settings, archive: Orthanc, kind: Kind, tmp_path: Path) -> None:
    async def scenario(here: Hospital) -> None:
        await here.add(kind, archive.node if kind is Kind.C_STORE else archive.dicomweb)
        images = [origin() for _ in range(3)]
        results = [await here.result(image) for image in images]
        await here.result(None, image_format="jpeg")  # of which there is no image to refer to
        async with here.working():
            await here.until(here.none_pending)
        assert (await here.outbox.figures()).failed == 0
        stored = archive.stored()
        for result, image in zip(results, images, strict=True):
            tags = archive.get(f"/instances/{stored[uid(result)]}/simplified-tags")
            assert tags["StudyInstanceUID"] == image.study_uid
            assert tags["PatientID"].startswith("derm-")
        file = tmp_path / "report.dcm"
        file.write_bytes(archive.file(stored[uid(results[0])]))
        if shutil.which("dsrdump"):
            assert "Malignant melanoma" in checked_by_others(file)

    run(own, scenario)


@needs_orthanc
@pytest.mark.parametrize("kind", [Kind.C_STORE, Kind.STOW])
def test_a_report_sent_twice_is_one_object(own: Settings, archive: Orthanc, kind: Kind) -> None:
    async def scenario(here: Hospital) -> None:
        await here.add(kind, archive.node if kind is Kind.C_STORE else archive.dicomweb)
        result = await here.result(origin())
        for _ in range(2):
            async with here.working():
                await here.until(here.none_pending)
            await here.fetch("UPDATE outbox SET delivered_at = NULL, due_at = now() RETURNING id")  # never marked
        async with here.working():
            await here.until(here.none_pending)
        assert (await here.outbox.figures()).failed == 0
        assert uid(result) in archive.stored()
        instances = archive.get("/instances")
        assert len(instances) == len(archive.stored()) == len(set(instances))

    run(own, scenario)


@needs_orthanc
def test_an_archive_that_was_down_gets_everything_once_it_is_up(own: Settings, tmp_path: Path) -> None:
    archive = Orthanc(tmp_path)

    async def scenario(here: Hospital) -> None:
        by_node, _ = await here.add(Kind.C_STORE, archive.node)
        by_web, _ = await here.add(Kind.STOW, archive.dicomweb)
        images = [origin() for _ in range(4)]
        half = [await here.result(image) for image in images[:2]]
        async with here.working():
            await here.until(lambda: _with_error(here, 2))
        archive.start()
        async with here.working():
            results = half + [await here.result(image) for image in images[2:]]
            await here.hurry()
            await here.until(here.none_pending)
        assert set(archive.stored()) == {uid(result) for result in results}
        assert {by_node, by_web} == {one.destination.id for one in await here.destinations.all() if one.delivered == 4}

    try:
        run(own, scenario)
    finally:
        archive.stop()


async def _with_error(here: Hospital, count: int) -> bool:
    return len(await here.fetch("SELECT DISTINCT destination_id FROM outbox WHERE error IS NOT NULL")) == count


@needs_orthanc
@pytest.mark.parametrize("keeps_patients", [False, True])
def test_from_the_image_of_a_gateway_to_the_report_in_the_archive(
    cluster: Cluster, archive: Orthanc, tmp_path: Path, keeps_patients: bool
) -> None:
    """The DICOM process as it is: its door and its worker."""
    own = settings_of(cluster, tmp_path, delivery_networks="127.0.0.0/8")
    sent = [photograph(waves() + number, PatientName="Roe^Jane") for number in range(3)]

    async def prepare(here: Hospital) -> None:
        await Senders(here.database).allow(here.sender.user_id, "GATEWAY", ["127.0.0.1"], None)
        keep = "UPDATE organisations SET keeps_patients = :keeps RETURNING id"
        await here.fetch(keep, keeps=keeps_patients)
        await here.add(Kind.C_STORE, archive.node)
        await here.add(Kind.STOW, archive.dicomweb)

    async def arrived(here: Hospital) -> None:
        await here.until(here.none_pending)
        assert (await here.outbox.figures()).failed == 0
        assert not await here.fetch("SELECT 1 FROM instances WHERE patient IS NOT NULL"), "and nothing is kept any more"

    run(own, prepare)
    with opened(own) as door:
        with associated(door) as association:
            assert [association.send_c_store(read(data)).Status for data in sent] == [0, 0, 0]
        run(own, arrived)
    stored = archive.stored()
    for row in door.rows("SELECT prediction_id, study_uid FROM instances"):
        tags = archive.get(f"/instances/{stored[uid(row['prediction_id'])]}/simplified-tags")
        assert tags["StudyInstanceUID"] == row["study_uid"]
        assert (tags["PatientID"] == "MRN-4711") is keeps_patients
        assert (tags["PatientName"] == "Roe^Jane") is keeps_patients


@dataclass
class StandInNode:
    """A node that answers C-STORE as it is told, which Orthanc cannot be made to."""

    statuses: list[int] = field(default_factory=lambda: [0x0000])
    received: list[tuple[str, str]] = field(default_factory=list)
    """SOP instance UID and the transfer syntax of each object."""
    callers: list[str] = field(default_factory=list)
    takes: list[str] = field(default_factory=lambda: [str(ComprehensiveSRStorage)])
    syntax: str = str(ImplicitVRLittleEndian)
    hangs_up: bool = False
    port: int = 0

    @contextmanager
    def listening(self, tls: ssl.SSLContext | None = None) -> Iterator[None]:
        def store(event: evt.Event) -> int:
            self.received.append((str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax)))
            self.callers.append(str(event.assoc.requestor.ae_title))
            assert event.dataset.CompletionFlag == "COMPLETE"
            if self.hangs_up:
                threading.Timer(0.05, event.assoc.abort).start()
            return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

        node = AE(ae_title="NODE")
        for taken in self.takes:
            node.add_supported_context(taken, self.syntax)
        server = node.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)], ssl_context=tls
        )
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield
        finally:
            server.shutdown()


def test_what_a_node_has_no_room_for_is_sent_again_as_the_same_object(own: Settings) -> None:
    node = StandInNode(statuses=[0xA700, 0xA701, 0x0000])

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.C_STORE, f"dicom://NODE@127.0.0.1:{node.port}")
        result = await here.result(origin())
        for count in range(1, 4):
            async with here.working():
                await here.until(lambda count=count: len(node.received) == count)
                await here.until(lambda count=count: _marked(here, count))
            await here.hurry()
        assert await here.none_pending()
        assert node.received == [(uid(result), ImplicitVRLittleEndian)] * 3
        assert set(node.callers) == {"DERMSERVE"}

    with node.listening():
        run(own, scenario)


async def _marked(here: Hospital, count: int) -> bool:
    error = f"C-STORE status 0xA70{count - 1}"
    return bool(await here.fetch("SELECT 1 FROM outbox WHERE error = :error OR delivered_at IS NOT NULL", error=error))


@pytest.mark.parametrize(
    ("status", "failed", "said"),
    [
        (0xC123, 1, "C-STORE status 0xC123"),
        (0x0122, 1, "C-STORE status 0x0122"),
        (0xA900, 1, "C-STORE status 0xA900"),
        (0x0111, 0, None),  # it has the report already: the answer to an earlier attempt was lost
        (0xB000, 0, None),  # a warning: stored all the same
    ],
)
def test_statuses_of_a_node(own: Settings, status: int, failed: int, said: str | None) -> None:
    node = StandInNode(statuses=[status])

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.C_STORE, f"dicom://NODE@127.0.0.1:{node.port}")
        await here.result(origin())
        async with here.working():
            await here.until(here.none_pending)
        (listed,) = await here.destinations.all()
        assert (listed.failed, listed.delivered, listed.last_error) == (failed, 1 - failed, said)

    with node.listening():
        run(own, scenario)


def test_a_node_that_closes_its_associations_at_once_gets_every_report(own: Settings) -> None:
    """The one that was kept for the next report turns out to be gone; that is no reason to wait."""
    node = StandInNode(hangs_up=True)

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.C_STORE, f"dicom://NODE@127.0.0.1:{node.port}")
        results = [await here.result(origin()) for _ in range(8)]
        async with here.working():
            await here.until(here.none_pending)
        assert {one for one, _ in node.received} == {uid(result) for result in results}
        assert [row.attempts for row in await here.fetch("SELECT attempts FROM outbox")] == [1] * 8

    with node.listening():
        run(own, scenario)


def test_a_node_that_takes_no_structured_reports_is_said_so(own: Settings) -> None:
    node = StandInNode(takes=["1.2.840.10008.5.1.4.1.1.7"])

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.C_STORE, f"dicom://NODE@127.0.0.1:{node.port}")
        await here.result(origin())
        async with here.working():
            await here.until(here.none_pending)
        assert (await here.destinations.all())[0].last_error == "it takes no Comprehensive SR"

    with node.listening():
        run(own, scenario)


def _refusal(reason: int) -> bytes:
    """A store response in DICOM's JSON (PS3.18 annex I)."""
    failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}
    return json.dumps(failed).encode()


@pytest.mark.parametrize(
    ("status", "said", "outcome", "error"),
    [
        (200, b"", "delivered", None),
        (200, b"no JSON", "delivered", None),
        (200, _refusal(0x0122), "failed", "STOW-RS failure reason 0x0122"),
        (202, b"<xml/>", "failed", "STOW-RS answered 202 without saying what it did not store"),
        (202, _refusal(0xA701), "pending", "STOW-RS failure reason 0xA701"),
        (409, _refusal(0x0111), "delivered", None),  # it has the report already
        (409, _refusal(0x0110), "failed", "STOW-RS failure reason 0x0110"),
        (409, b"", "failed", "HTTP 409"),
        (401, _refusal(0x0111), "failed", "HTTP 401"),
        (503, _refusal(0x0110), "pending", "HTTP 503"),
    ],
)
def test_answers_of_a_dicomweb_server(own: Settings, status: int, said: bytes, outcome: str, error: str | None) -> None:
    receiver = Receiver(lambda _: (status, {}), said=said)

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.STOW, f"http://127.0.0.1:{receiver.port}/rs/", "a-token")
        await here.result(origin())
        async with here.working():
            await here.until(lambda: receiver.requests)
        (listed,) = await here.destinations.all()
        assert {
            name: getattr(listed, name) for name in ("pending", "failed", "delivered") if getattr(listed, name)
        } == {outcome: 1}
        assert listed.last_error == error
        (request,) = receiver.requests
        assert request.path == "/rs/studies"
        assert request.headers["authorization"] == "Bearer a-token"
        assert 'type="application/dicom"' in request.headers["content-type"]

    with receiver.listening():
        run(own, scenario)


@needs_orthanc
@pytest.mark.slow
def test_workers_killed_again_and_again_lose_and_double_nothing(own: Settings, archive: Orthanc) -> None:
    chance = random.Random(7)
    before = set(archive.stored())

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.C_STORE, archive.node)
        await here.add(Kind.STOW, archive.dicomweb)
        results = [await here.result(origin()) for _ in range(60)]
        killed = 0
        while killed < 4:
            left = (await here.outbox.figures()).pending
            process = worker_process(own)
            await here.until(lambda left=left: _fewer(here, left), timeout_s=60)  # it has begun
            await asyncio.sleep(chance.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            killed += 1
            await here.hurry()  # the leases that it held are over
        async with here.working():
            await here.until(here.none_pending, timeout_s=120)
        assert (await here.outbox.figures()).failed == 0
        assert set(archive.stored()) - before == {uid(result) for result in results}
        assert len(archive.get("/instances")) == len(before) + len(results)

    run(own, scenario)


async def _fewer(here: Hospital, than: int) -> bool:
    pending = (await here.outbox.figures()).pending
    return pending < than or pending == 0


def _issue(
    folder: Path, name: str, by: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for loopback in `name.pem`, with its key; of an authority where nobody issues it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[0].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(f"{name}.example")]
            ),
            critical=False,
        )
    )
    made = builder.sign(by[1] if by else key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return made, key


def test_reports_go_by_tls_to_a_node_that_asks_who_sends_and_to_no_other(own: Settings, tmp_path: Path) -> None:
    authority = _issue(tmp_path, "authority", None)
    for name in ("node", "us"):
        _issue(tmp_path, name, authority)
    _issue(tmp_path, "stranger", None)

    def context(certificate: str) -> ssl.SSLContext:
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.load_cert_chain(tmp_path / f"{certificate}.pem")
        made.load_verify_locations(tmp_path / "authority.pem")
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    trusted, stranger = StandInNode(), StandInNode()
    secure = own.model_copy(
        update={"delivery_ca": tmp_path / "authority.pem", "dicom_tls_certificate": tmp_path / "us.pem"}
    )

    async def scenario(here: Hospital) -> None:
        for node in (trusted, stranger):
            await here.add(Kind.C_STORE, f"dicom+tls://NODE@127.0.0.1:{node.port}")
        result = await here.result(origin())
        async with here.working():
            await here.until(lambda: _with_error(here, 1))
            await here.until(lambda: len(trusted.received) == 1)
        assert [one for one, _ in trusted.received] == [uid(result)]
        assert stranger.received == []

    with trusted.listening(context("node")), stranger.listening(context("stranger")):
        run(secure, scenario)


@pytest.mark.parametrize("name", ["clinic", "stranger"])
def test_a_webhook_is_reached_at_the_address_that_was_checked_and_known_by_its_name(
    own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nobody knows clinic.example but the check: a name asked a second time might mean another machine."""
    authority = _issue(tmp_path, "authority", None)
    _issue(tmp_path, name, authority)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(tmp_path / f"{name}.pem")
    receiver = Receiver()

    async def resolve(_: Networks, host: str, port: int) -> str:
        assert (host, port) == ("clinic.example", receiver.port)
        return "127.0.0.1"

    monkeypatch.setattr(Networks, "resolve", resolve)

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, f"https://clinic.example:{receiver.port}/results")
        await here.result(origin())
        async with here.working():
            if name == "clinic":
                await here.until(here.none_pending)
                assert receiver.requests[0].headers["host"] == f"clinic.example:{receiver.port}"
            else:
                await here.until(lambda: _with_error(here, 1))
                assert receiver.requests == []

    with receiver.listening(served):
        run(own.model_copy(update={"delivery_ca": tmp_path / "authority.pem"}), scenario)
