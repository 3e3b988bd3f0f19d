"""Peers that others wrote: DCMTK's tools and Orthanc."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import uid

from frontend.dicom.commitment import SOP_CLASS
from tests.dermserve.encoded import waves
from tests.frontend.conftest import Cluster
from tests.frontend.node import Door, allow, free_port, opened, photograph, read, settings_of
from tests.frontend.test_dicom_association import Authority

pytestmark = pytest.mark.skipif(
    shutil.which("dcmsend") is None, reason="DCMTK is not installed (deploy/setup.sh system)"
)
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
OPTIONS = {  # of storescu, by transfer syntax
    uid.ExplicitVRLittleEndian: "-xe",
    uid.ImplicitVRLittleEndian: "-xi",
    uid.ExplicitVRBigEndian: "-xb",
    uid.DeflatedExplicitVRLittleEndian: "-xd",
    uid.JPEGBaseline8Bit: "-xy",
    uid.JPEG2000Lossless: "-xv",
    uid.JPEG2000: "-xw",
    uid.JPEGLSLossless: "-xt",
    uid.RLELossless: "-xr",
}


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(settings_of(cluster, tmp_path_factory.mktemp("peers"))) as door:
        yield door


@pytest.fixture
def door(running: Door) -> Door:
    running.stand_in.reset()
    return running


def run(door: Door, tool: str, *arguments: object, called: str = "DERMSERVE") -> tuple[int, str]:
    """Exit status and output of a tool of DCMTK."""
    host, port = door.address
    command = [tool, "-v", *map(str, arguments[:1]), "-aec", called, host, str(port), *map(str, arguments[1:])]
    done = subprocess.run([part for part in command if part], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One photograph in each transfer syntax."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for number, syntax in enumerate(OPTIONS):
        paths[syntax] = folder / f"{number}.dcm"
        paths[syntax].write_bytes(photograph(waves() + number, syntax))
    return paths


def stored(door: Door) -> set[str]:
    return {row[0] for row in door.rows("SELECT sop_instance_uid FROM instances")}


def names(files: Any) -> set[str]:
    return {read(path.read_bytes()).SOPInstanceUID for path in files}


def test_echoscu_is_answered_and_a_wrong_title_is_refused(door: Door) -> None:
    assert run(door, "echoscu", "")[0] == 0
    status, words = run(door, "echoscu", "", called="WRONG")
    assert status != 0
    assert "Called AE Title Not Recognized" in words


def test_dcmsend_sends_a_folder_and_again_without_a_second_row(door: Door, files: dict[str, Path]) -> None:
    for _ in range(2):
        status, words = run(door, "dcmsend", "", *files.values())
        assert status == 0, words
        assert "with status SUCCESS  : 9" in words
        assert names(files.values()) <= stored(door)
    for row in door.rows("SELECT count(*) FROM instances GROUP BY sop_instance_uid"):
        assert row[0] == 1


@pytest.mark.parametrize("combined", [False, True], ids=["", "in one context"])
@pytest.mark.parametrize("syntax", OPTIONS, ids=lambda syntax: uid.UID(syntax).keyword)
def test_storescu_sends_every_syntax_as_it_is(door: Door, tmp_path: Path, syntax: str, combined: bool) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(photograph(waves() // 3, syntax))
    options = ["-R", OPTIONS[syntax], *(["+C"] if combined else [])]
    command = ["storescu", "-v", *options, "-aec", "DERMSERVE", *map(str, door.address), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Received Store Response (Success)" in done.stderr + done.stdout
    assert names([path]) <= stored(door)


def test_dcmsend_sees_what_is_refused_and_the_others_are_stored(door: Door, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.dcm", tmp_path / "bad.dcm"
    good.write_bytes(photograph(waves() // 5))
    bad.write_bytes(photograph(waves() // 5, Rows=7))
    _, words = run(door, "dcmsend", "--no-halt", bad, good)
    assert "with status SUCCESS  : 1" in words, words
    assert "Error: CannotUnderstand" in words, words
    assert names([good]) <= stored(door)
    assert not names([bad]) & stored(door)


def test_storescu_over_tls(cluster: Cluster, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, client = authority.issue("server"), authority.issue("gateway")
    path = tmp_path / "one.dcm"
    path.write_bytes(photograph(waves()))
    settings = settings_of(
        cluster, tmp_path, dicom_tls_certificate=certificate, dicom_tls_client_ca=authority.certificate
    )
    with opened(settings) as door:
        tls = ["+tls", str(client), str(client), "+cf", str(authority.certificate), "-rc"]
        address = [*map(str, door.address), str(path)]
        for options, expected in ((tls, True), (["+tla"], False), ([], False)):
            command = ["storescu", "-v", "-R", *options, "-aec", "DERMSERVE", *address]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode == 0) == expected, done.stderr


class Orthanc:
    """A running Orthanc that knows the door as `derm`."""

    def __init__(self, folder: Path, door_port: int) -> None:
        self.dicom_port, http_port = free_port(), free_port()
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60)
        configuration = {
            "Name": "Archive",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "ARCHIVE",
            "DicomCheckCalledAet": True,
            "DicomPort": self.dicom_port,
            "HttpPort": http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "DicomModalities": {
                "derm": {"AET": "DERMSERVE", "Host": "127.0.0.1", "Port": door_port, "AllowStorageCommitment": True}
            },
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self._log = (folder / "orthanc.log").open("wb")
        self.process = subprocess.Popen(
            [ORTHANC, str(folder / "orthanc.json")], stdout=self._log, stderr=self._log, cwd=folder
        )

    def start(self) -> Orthanc:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.api.get("/system").raise_for_status()
                return self
            except httpx.TransportError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def take(self, data: bytes) -> dict[str, Any]:
        answer = self.api.post("/instances", content=data)
        answer.raise_for_status()
        return dict(answer.json())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


@pytest.fixture
def archive(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Orthanc, Door]]:
    """Orthanc beside a door that lets it in and nobody else."""
    if not Path(ORTHANC).exists():
        pytest.skip("Orthanc is not installed (deploy/setup.sh system)")
    settings = settings_of(cluster, tmp_path)
    orthanc = Orthanc(tmp_path, settings.dicom_port)
    allow(settings, "ARCHIVE", "127.0.0.1", report_to=("127.0.0.1", orthanc.dicom_port))
    with opened(settings) as door:
        try:
            yield orthanc.start(), door
        finally:
            orthanc.stop()


def test_orthanc_forwards_a_study_and_hears_what_is_safe(archive: tuple[Orthanc, Door]) -> None:
    orthanc, door = archive
    study = uid.generate_uid()
    syntaxes = [uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless]
    files = [photograph(waves() + n, syntax, StudyInstanceUID=study) for n, syntax in enumerate(syntaxes)]
    taken = [orthanc.take(data) for data in files]
    assert orthanc.api.post("/modalities/derm/echo", json={}).status_code == 200
    [parent] = {one["ParentStudy"] for one in taken}
    for _ in range(2):
        done = orthanc.api.post("/modalities/derm/store", json={"Resources": [parent], "Synchronous": True})
        assert (done.status_code, done.json()["FailedInstancesCount"]) == (200, 0)
        assert stored(door) == {read(data).SOPInstanceUID for data in files}
    assert [row[0] for row in door.rows("SELECT count(*) FROM predictions")] == [4]
    assert {row[0] for row in door.rows("SELECT DISTINCT study_uid FROM instances")} == {study}

    present = [[read(data).SOPClassUID, read(data).SOPInstanceUID] for data in files[:2]]
    absent = [read(files[0]).SOPClassUID, uid.generate_uid()]
    asked = orthanc.api.post("/modalities/derm/storage-commitment", json={"DicomInstances": [*present, absent]})
    assert asked.status_code == 200, asked.text
    report = _report(orthanc, asked.json()["ID"])
    assert report["Status"] == "Failure"
    assert {one["SOPInstanceUID"] for one in report["Success"]} == {instance for _, instance in present}
    [failure] = report["Failures"]
    assert (failure["SOPInstanceUID"], failure["FailureReason"]) == (absent[1], 0x0112)
    deadline = time.monotonic() + 15  # Orthanc shows the report before the door has its answer to it
    while door.rows("SELECT 1 FROM commitments"):
        assert time.monotonic() < deadline, "a report that was received is still due"
        time.sleep(0.05)


def _report(orthanc: Orthanc, name: str) -> Any:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        report = orthanc.api.get(f"/storage-commitment/{name}").json()
        if report["Status"] != "Pending":
            return report
        time.sleep(0.1)
    raise AssertionError(f"Orthanc was never told about {SOP_CLASS}")
