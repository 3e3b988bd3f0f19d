"""Storage commitment: what was asked for is told, over the same association or another, and after a restart."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association

from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY, waves
from tests.frontend.conftest import Cluster
from tests.frontend.node import (
    EXPLICIT,
    Door,
    allow,
    associated,
    free_port,
    opened,
    photograph,
    read,
    settings_of,
    store,
)
from tests.frontend.test_dicom_association import Authority, client_tls

SOP_CLASS = "1.2.840.10008.1.20.1"
SOP_INSTANCE = "1.2.840.10008.1.20.1.1"
CONTEXTS = [build_context(DERMOSCOPIC_PHOTOGRAPHY, EXPLICIT), build_context(SOP_CLASS)]
MULTIFRAME = "1.2.840.10008.5.1.4.1.1.7.4"


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(settings_of(cluster, tmp_path_factory.mktemp("commitment"))) as door:
        yield door


@pytest.fixture
def door(running: Door) -> Door:
    running.stand_in.reset()
    running.rows("DELETE FROM commitments")
    return running


class Heard:
    """What a node is told: a handler for its associations, and a server of its own."""

    def __init__(self, *statuses: int) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self._statuses = list(statuses)
        self._any = threading.Condition()

    def handler(self, event: evt.Event) -> tuple[int, None]:
        with self._any:
            self.reports.append((event.event_type, event.event_information))
            self._any.notify_all()
        return (self._statuses.pop(0) if self._statuses else 0x0000), None

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_N_EVENT_REPORT, self.handler)]

    def listen(self, port: int, **more: Any) -> Any:
        ae = AE(ae_title="GATEWAY")
        ae.require_called_aet = True
        ae.add_supported_context(SOP_CLASS, scu_role=False, scp_role=True)
        return ae.start_server(("127.0.0.1", port), block=False, evt_handlers=self.handlers, **more)

    def wait(self, count: int = 1, seconds: float = 15) -> list[tuple[int, set[str], dict[str, int]]]:
        """Event type, committed instances, and failed ones with their reason."""
        with self._any:
            assert self._any.wait_for(lambda: len(self.reports) >= count, seconds), "no report came"
            return [
                (
                    kind,
                    {item.ReferencedSOPInstanceUID for item in said.get("ReferencedSOPSequence") or ()},
                    {i.ReferencedSOPInstanceUID: i.FailureReason for i in said.get("FailedSOPSequence") or ()},
                )
                for kind, said in self.reports
            ]


def ask(
    association: Association, *instances: str, transaction: str = "", sop_class: str = DERMOSCOPIC_PHOTOGRAPHY
) -> int:
    information = Dataset()
    information.TransactionUID = transaction or generate_uid()
    information.ReferencedSOPSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        information.ReferencedSOPSequence.append(item)
    status, _ = association.send_n_action(information, 1, SOP_CLASS, SOP_INSTANCE)
    return int(status.get("Status", -1))


def settled(door: Door, *owed: str) -> bool:
    """Whether within some seconds nothing is owed to anybody but these."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if [row[0] for row in door.rows("SELECT ae_title FROM commitments")] == list(owed):
            return True
        time.sleep(0.1)
    return False


def test_of_two_present_and_one_absent_instance_two_are_committed_and_one_is_not(door: Door) -> None:
    files = [photograph(waves()), photograph(waves() // 2)]
    absent = generate_uid()
    present = {read(data).SOPInstanceUID for data in files}
    heard = Heard()
    with associated(door, contexts=CONTEXTS, evt_handlers=heard.handlers) as association:
        assert [association.send_c_store(read(data)).Status for data in files] == [0, 0]
        assert ask(association, *present, absent) == 0
        assert heard.wait() == [(2, present, {absent: 0x0112})]
        assert ask(association, *present) == 0
        assert heard.wait(2)[1] == (1, present, {})
    assert settled(door)


def test_images_may_be_sent_while_a_report_is_on_its_way(door: Door) -> None:
    files = [photograph(waves() + number) for number in range(6)]
    heard = Heard()
    with associated(door, contexts=CONTEXTS, evt_handlers=heard.handlers) as association:
        for data in files:
            assert association.send_c_store(read(data)).Status == 0
            assert ask(association, read(data).SOPInstanceUID) == 0
        assert [kind for kind, _, _ in heard.wait(6)] == [1] * 6
    assert settled(door)


def test_an_instance_is_committed_with_all_its_frames_only(door: Door) -> None:
    data = photograph([waves() // (number + 1) for number in range(3)], SOPClassUID=MULTIFRAME)
    name = read(data).SOPInstanceUID
    assert store(door, data) == [0]
    heard = Heard()
    with associated(door, contexts=CONTEXTS, evt_handlers=heard.handlers) as association:
        assert ask(association, name, sop_class=MULTIFRAME) == 0
        assert heard.wait(1)[0] == (1, {name}, {})
        door.rows("DELETE FROM predictions WHERE idempotency_key = $1", f"dicom:{name}/2")
        assert ask(association, name, sop_class=MULTIFRAME) == 0
        assert heard.wait(2)[1] == (2, set(), {name: 0x0112})


def test_a_class_that_is_not_the_instance_s_is_told(door: Door) -> None:
    data = photograph(waves())
    assert store(door, data) == [0]
    heard = Heard()
    with associated(door, contexts=CONTEXTS, evt_handlers=heard.handlers) as association:
        assert ask(association, read(data).SOPInstanceUID, sop_class=MULTIFRAME) == 0
        assert heard.wait() == [(2, set(), {read(data).SOPInstanceUID: 0x0119})]


def test_nobody_is_told_of_another_s_instances(cluster: Cluster, tmp_path: Path) -> None:
    settings = settings_of(cluster, tmp_path)
    allow(settings, "GATEWAY")
    allow(settings, "OTHER", owner="other")
    with opened(settings) as door:
        data = photograph(waves())
        assert store(door, data) == [0]
        heard = Heard()
        with associated(door, contexts=CONTEXTS, calling="OTHER", evt_handlers=heard.handlers) as association:
            assert ask(association, read(data).SOPInstanceUID) == 0
            assert heard.wait() == [(2, set(), {read(data).SOPInstanceUID: 0x0112})]


def test_what_is_no_request_is_refused_and_nothing_is_owed(door: Door) -> None:
    with associated(door, contexts=CONTEXTS) as association:
        assert ask(association) == 0x0115
        assert ask(association, "not a uid") == 0x0115
        information = Dataset()
        information.TransactionUID = generate_uid()
        assert association.send_n_action(information, 2, SOP_CLASS, SOP_INSTANCE)[0].Status == 0x0123
        assert association.send_n_action(information, 1, SOP_CLASS, "1.2.3")[0].Status == 0x0112
    assert door.rows("SELECT 1 FROM commitments") == []


def test_a_node_with_an_address_is_called_there_and_called_again_until_it_hears(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.dicom.commitment._FIRST_PAUSE", _seconds(0.5))
    port = free_port()
    settings = settings_of(cluster, tmp_path)
    allow(settings, "GATEWAY", report_to=("127.0.0.1", port))
    with opened(settings) as door:
        data = photograph(waves())
        name = read(data).SOPInstanceUID
        assert store(door, data) == [0]
        with associated(door, contexts=CONTEXTS) as association:
            assert ask(association, name) == 0
        time.sleep(1.5)  # nobody listens yet
        heard = Heard(0x0110)
        server = heard.listen(port)
        try:
            assert heard.wait(2) == [(1, {name}, {})] * 2, "it answered 'processing failure' the first time"
            assert settled(door)
            assert len(heard.reports) == 2
        finally:
            server.shutdown()


def test_a_node_is_called_over_tls_where_the_door_speaks_it(cluster: Cluster, tmp_path: Path) -> None:
    authority, port = Authority(tmp_path), free_port()
    settings = settings_of(
        cluster,
        tmp_path,
        dicom_tls_certificate=authority.issue("server"),
        dicom_tls_client_ca=authority.certificate,
    )
    allow(settings, "GATEWAY", report_to=("127.0.0.1", port))
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    own.load_cert_chain(authority.issue("gateway"))
    own.verify_mode = ssl.CERT_REQUIRED
    heard, absent = Heard(), generate_uid()
    server = heard.listen(port, ssl_context=own)
    tls = client_tls(authority, authority.issue("sender"))
    try:
        with opened(settings) as door:
            with associated(door, contexts=CONTEXTS, tls_args=tls) as association:
                assert ask(association, absent) == 0
            assert heard.wait() == [(2, set(), {absent: 0x0112})]
            assert settled(door)
    finally:
        server.shutdown()


def _seconds(value: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=value)


def test_an_address_that_does_not_exist_holds_up_no_other(cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    settings = settings_of(cluster, tmp_path)
    allow(settings, "NOWHERE", report_to=("no-such-host.invalid", 104))
    allow(settings, "GATEWAY", report_to=("127.0.0.1", port), owner="other")
    heard, absent = Heard(), generate_uid()
    server = heard.listen(port)
    try:
        with opened(settings) as door:
            for calling in ("NOWHERE", "GATEWAY"):
                with associated(door, contexts=CONTEXTS, calling=calling) as association:
                    assert ask(association, absent) == 0
            assert heard.wait() == [(2, set(), {absent: 0x0112})]
            assert settled(door, "NOWHERE")
    finally:
        server.shutdown()


def test_a_node_that_takes_the_role_is_told_over_the_association_that_asked(cluster: Cluster, tmp_path: Path) -> None:
    settings = settings_of(cluster, tmp_path)
    allow(settings, "GATEWAY", report_to=("127.0.0.1", free_port()))
    heard = Heard()
    role = build_role(SOP_CLASS, scu_role=True)
    with (
        opened(settings) as door,
        associated(door, contexts=CONTEXTS, evt_handlers=heard.handlers, ext_neg=[role]) as association,
    ):
        absent = generate_uid()
        assert ask(association, absent) == 0
        assert heard.wait() == [(2, set(), {absent: 0x0112})]
        assert settled(door)


@pytest.mark.parametrize("address", [True, False], ids=["it listens", "it calls again"])
def test_an_acknowledged_request_outlives_the_process(cluster: Cluster, tmp_path: Path, address: bool) -> None:
    port = free_port()
    settings = settings_of(cluster, tmp_path)
    allow(settings, "GATEWAY", report_to=("127.0.0.1", port) if address else None)
    data = photograph(waves())
    name = read(data).SOPInstanceUID
    with opened(settings) as door:
        assert store(door, data) == [0]
        with associated(door, contexts=CONTEXTS, evt_handlers=Heard(0x0110).handlers) as association:
            assert ask(association, name) == 0
    assert len(door.rows("SELECT 1 FROM commitments")) == 1
    heard = Heard()
    server = heard.listen(port)
    try:
        with opened(settings.model_copy(update={"dicom_port": free_port()})) as again:
            if address:
                assert heard.wait(seconds=20) == [(1, {name}, {})]
            else:
                with associated(again, contexts=CONTEXTS, evt_handlers=heard.handlers):
                    assert heard.wait() == [(1, {name}, {})]
            assert settled(again)
    finally:
        server.shutdown()


def test_the_same_transaction_asked_again_is_the_same_one(door: Door) -> None:
    transaction, absent = generate_uid(), generate_uid()
    silent = Heard(0x0110, 0x0110, 0x0110)
    with associated(door, contexts=CONTEXTS, evt_handlers=silent.handlers) as association:
        assert ask(association, absent, transaction=transaction) == 0
        assert ask(association, absent, transaction=transaction) == 0
        silent.wait(2)
    assert len(door.rows("SELECT 1 FROM commitments WHERE transaction_uid = $1", transaction)) == 1


def test_what_nobody_wants_to_hear_for_a_day_is_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    with opened(settings_of(cluster, tmp_path)) as door:
        with associated(door, contexts=CONTEXTS, evt_handlers=Heard(0x0110).handlers) as association:
            assert ask(association, generate_uid()) == 0
        assert len(door.rows("SELECT 1 FROM commitments")) == 1
        door.rows("UPDATE commitments SET created_at = now() - interval '25 hours'")
        assert settled(door)


def test_a_list_beyond_the_bound_is_refused_for_want_of_resources(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.dicom.association.MAX_LIST_BYTES", 10_000)
    with associated(door, contexts=CONTEXTS) as association:
        assert ask(association, *[generate_uid() for _ in range(200)]) == 0x0213
        assert ask(association, generate_uid()) == 0
