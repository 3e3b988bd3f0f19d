"""Who may associate, how many, and what a peer that behaves badly can do: nothing to the others."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dermserve.errors import StartupError
from frontend.database import Database
from frontend.dicom import association as bounds
from frontend.dicom import room
from frontend.dicom.senders import Senders
from frontend.dicom.server import tls_context
from tests.dermserve.encoded import waves
from tests.frontend.conftest import Cluster
from tests.frontend.node import NO_ANSWER, Door, allow, associated, opened, photograph, read, settings_of, store


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(settings_of(cluster, tmp_path_factory.mktemp("door"), dicom_associations=5)) as door:
        yield door


@pytest.fixture
def door(running: Door) -> Door:
    running.stand_in.reset()
    return running


def rejection(door: Door, **more: Any) -> tuple[int, int, int] | None:
    """Result, source and reason of the rejection; None where there was none."""
    with associated(door, **more) as association:
        if not association.is_rejected:
            return None
        told = association.acceptor.primitive
        return told.result, told.result_source, told.diagnostic


def test_a_node_that_calls_somebody_else_is_rejected(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dermserve.dicom"):
        assert rejection(door, called="PACS") == (1, 1, 7)
    assert "GATEWAY at 127.0.0.1: association rejected: called AE title not recognised" in caplog.text
    assert rejection(door) is None


def test_once_a_sender_is_allowed_only_it_may_send_and_only_from_its_networks(cluster: Cluster, tmp_path: Path) -> None:
    settings = settings_of(cluster, tmp_path)
    with opened(settings) as door:
        assert rejection(door, calling="ANYBODY") is None
        allow(settings, "GATEWAY")
        allow(settings, "ELSEWHERE", "10.0.0.0/8", "192.0.2.7")
        time.sleep(1.1)  # who was let in is known for a second
        assert rejection(door) is None
        assert rejection(door, calling="ANYBODY") == (1, 1, 3)
        assert rejection(door, calling="gateway") == (1, 1, 3)
        assert rejection(door, calling="ELSEWHERE") == (1, 1, 3)


def test_a_sender_that_is_removed_or_whose_owner_is_disabled_is_refused_within_an_open_association(
    cluster: Cluster, tmp_path: Path
) -> None:
    settings = settings_of(cluster, tmp_path)
    allow(settings, "GATEWAY")
    with opened(settings) as door, associated(door) as association:
        assert association.send_c_store(read(photograph(waves()))).Status == 0
        door.rows("UPDATE users SET disabled_at = now()")
        time.sleep(1.1)
        assert association.send_c_store(read(photograph(waves()))).Status == 0x0124
        door.rows("UPDATE users SET disabled_at = NULL")
        asyncio.run(_remove(settings.database_url, "GATEWAY"))
        time.sleep(1.1)
        # This machine's nodes may send again, because no sender is configured any more.
        assert association.send_c_store(read(photograph(waves()))).Status == 0


async def _remove(url: str | None, ae_title: str) -> None:
    database = Database(url or "")
    await Senders(database).remove(ae_title)
    await database.close()


def test_a_door_for_other_machines_lets_nobody_in_until_a_sender_is_allowed(cluster: Cluster, tmp_path: Path) -> None:
    with opened(settings_of(cluster, tmp_path, dicom_host="0.0.0.0")) as door:
        assert rejection(door) == (1, 1, 3)


def test_without_a_database_nobody_is_let_in_and_everybody_may_come_back(cluster: Cluster, tmp_path: Path) -> None:
    with opened(settings_of(cluster, tmp_path)) as door:
        cluster.stop()
        try:
            assert rejection(door) == (2, 3, 1)
        finally:
            cluster.start()
        assert rejection(door) is None


def test_a_hundred_at_once_are_let_in_as_far_as_there_is_room_and_the_others_are_told(door: Door) -> None:
    outcomes: list[object] = []
    gate, done = threading.Barrier(101), threading.Event()

    def come() -> None:
        gate.wait()
        with associated(door) as association:
            if association.is_rejected:
                told = association.acceptor.primitive
                outcomes.append((told.result, told.result_source, told.diagnostic))
            else:
                outcomes.append(association.is_established)
            if association.is_established:
                done.wait(20)

    threads = [threading.Thread(target=come) for _ in range(100)]
    for thread in threads:
        thread.start()
    gate.wait()
    deadline = time.monotonic() + 20
    while len(outcomes) < 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 5
    # 31 were too many even to be told: their connection ended.
    assert 5 + outcomes.count((2, 3, 2)) + outcomes.count(False) == 100
    assert outcomes.count((2, 3, 2)) >= 50
    assert _eventually(lambda: rejection(door) is None)
    assert store(door, photograph(waves())) == [0]


def _eventually(true: Any, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


def own_threads() -> int:
    return psutil.Process(os.getpid()).num_threads()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BBL", 1, 0, 0xFFFFFFFF),
        struct.pack(">BBL", 1, 0, 1000) + b"x" * 10,
        struct.pack(">BBL", 4, 0, 6) + struct.pack(">LBB", 2, 1, 3),
        struct.pack(">BBL", 1, 0, 68) + b"\xff" * 68,
    ],
    ids=["nothing", "http", "4 GiB", "cut", "data first", "junk"],
)
def test_a_stranger_who_speaks_something_else_holds_nothing_up(
    door: Door, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "IDLE_S", 1.0)
    before = own_threads()
    with socket.create_connection(door.address) as stranger:
        stranger.sendall(sent)
        assert store(door, photograph(waves())) == [0]
    assert _eventually(lambda: own_threads() <= before), "its threads end"


def test_a_length_beyond_what_was_agreed_ends_the_connection_at_once(door: Door) -> None:
    with socket.create_connection(door.address) as stranger:
        stranger.sendall(struct.pack(">BBL", 1, 0, 10_000_000))
        stranger.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


def test_a_connection_that_dribbles_is_ended(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a plain time-out from ever passing."""
    monkeypatch.setattr(bounds, "_PDU_S", 1.0)
    with opened(settings_of(cluster, tmp_path)) as door, socket.create_connection(door.address) as slow:
        slow.sendall(struct.pack(">BBL", 1, 0, 10_000))
        slow.settimeout(0.1)
        started = time.monotonic()
        while not _ended(slow):
            assert time.monotonic() - started < 5


def _ended(connection: socket.socket) -> bool:
    """Whether the other side has ended it; sends it a byte if not."""
    try:
        connection.sendall(b"\x00")
        return connection.recv(10) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_an_association_that_falls_silent_in_an_object_is_ended_and_gives_back_its_room(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "IDLE_S", 1.0)
    held = room.Room()
    monkeypatch.setattr("frontend.dicom.__main__.Room", lambda: held)
    settings = settings_of(cluster, tmp_path, dicom_associations=1)
    with opened(settings) as door, associated(door) as association:
        from io import BytesIO

        from pynetdicom.dimse_messages import C_STORE_RQ
        from pynetdicom.dimse_primitives import C_STORE

        data = read(photograph(waves()))
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        request.DataSet = BytesIO(bytes(300_000))
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        parts = list(message.encode_msg(association.accepted_contexts[0].context_id, 16_384))
        for part in parts[:-5]:
            association.dul.send_pdu(part)
        assert _eventually(lambda: held.held[0] > 300_000)
        assert _eventually(lambda: association.is_aborted, 6)
        assert _eventually(lambda: store(door, photograph(waves())) == [0]), "the only slot is free again"
        assert _eventually(lambda: held.held == (0, 0))


def test_a_slow_analysis_is_not_taken_for_a_silent_peer(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "IDLE_S", 0.6)
    with opened(settings_of(cluster, tmp_path)) as door:
        door.stand_in.delay_s = 1.2
        assert store(door, photograph(waves()), photograph(waves() // 2)) == [0, 0]


def test_a_stop_answers_what_is_under_way_and_takes_no_more(cluster: Cluster, tmp_path: Path) -> None:
    settings = settings_of(cluster, tmp_path)
    door = Door(settings, _stand_in()).start()
    door.stand_in.delay_s = 1.0
    first, second = read(photograph(waves())), read(photograph(waves() // 2))
    statuses: list[int] = []

    def send() -> None:
        with associated(door) as association:
            statuses.append(association.send_c_store(first).Status)
            try:
                statuses.append(association.send_c_store(second).get("Status", NO_ANSWER))
            except RuntimeError:
                statuses.append(NO_ANSWER)

    sender = threading.Thread(target=send)
    sender.start()
    assert _eventually(lambda: bool(door.stand_in.calls))
    assert door.stop() < 5
    sender.join()
    assert statuses in ([0, NO_ANSWER], [0, 0xA700])
    stored = {row[0] for row in door.rows("SELECT sop_instance_uid FROM instances")}
    assert stored == {first.SOPInstanceUID}


def _stand_in() -> Any:
    from tests.frontend.conftest import StandIn

    return StandIn()


class Authority:
    """Makes certificates for tests; files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        self.certificate = self._write("authority", self._key, self._name, is_authority=True)

    def issue(self, name: str) -> Path:
        """Certificate and key of 127.0.0.1, in one file."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._write(name, ec.generate_private_key(ec.SECP256R1()), subject)

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey, subject: x509.Name, *, is_authority: bool = False
    ) -> Path:
        now = datetime.datetime.now(datetime.UTC)
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(own, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"{name}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + secret)
        return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def client_tls(authority: Authority, certificate: Path | None = None) -> tuple[ssl.SSLContext, str]:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context, "127.0.0.1"


def test_a_tls_door_takes_images_over_tls_and_nothing_in_the_clear(
    cluster: Cluster, tmp_path: Path, authority: Authority
) -> None:
    settings = settings_of(cluster, tmp_path, dicom_tls_certificate=authority.issue("server"))
    with opened(settings) as door:
        data = photograph(waves(700, 700))  # many TLS records
        assert store(door, data, photograph(waves()), tls_args=client_tls(authority)) == [0, 0]
        with associated(door) as plain:
            assert not plain.is_established
        with socket.create_connection(door.address):  # a handshake that never comes
            assert store(door, data, tls_args=client_tls(authority)) == [0]


def test_a_door_that_asks_for_certificates_wants_those_of_its_authority(
    cluster: Cluster, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "others").mkdir()
    others = Authority(tmp_path / "others")
    settings = settings_of(
        cluster,
        tmp_path,
        dicom_tls_certificate=authority.issue("server"),
        dicom_tls_client_ca=authority.certificate,
    )
    with opened(settings) as door:
        for certificate in (None, others.issue("stranger")):
            with associated(door, tls_args=client_tls(authority, certificate)) as association:
                assert not association.is_established
        assert store(door, photograph(waves()), tls_args=client_tls(authority, authority.issue("gateway"))) == [0]


def test_settings_that_cannot_work_are_told_at_the_start(
    cluster: Cluster, tmp_path: Path, authority: Authority
) -> None:
    settings = settings_of(cluster, tmp_path, dicom_tls_client_ca=authority.certificate)
    with pytest.raises(StartupError, match="DERMSERVE_DICOM_TLS_CERTIFICATE"):
        tls_context(settings)
    with pytest.raises(StartupError, match="certificates"):
        tls_context(settings.model_copy(update={"dicom_tls_certificate": tmp_path / "missing.pem"}))
