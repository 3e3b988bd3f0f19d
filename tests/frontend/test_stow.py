"""STOW-RS: DICOM objects by HTTP, from raw requests and from the senders that hospitals have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from requests import HTTPError

from dermserve import sample
from dermserve.errors import Overloaded
from frontend import stow
from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY
from tests.frontend.conftest import Server, execute, new_email, new_key
from tests.frontend.node import photograph, read

PATH: Final = "/dicomweb/studies"
RELATED: Final = 'multipart/related; type="application/dicom"; boundary=edge'
CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
FAILED, REFERENCED, OTHER = "00081198", "00081199", "0008119A"
ORTHANC: Final = Path("/usr/sbin/Orthanc")
PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def picture(seed: int = 1) -> Any:
    return sample.draw(seed)[::4, ::4]


def body(*parts: bytes, kind: str = "application/dicom") -> bytes:
    return b"".join(b"--edge\r\nContent-Type: %s\r\n\r\n%s\r\n" % (kind.encode(), part) for part in parts) + b"--edge--"


def send(api: httpx.Client, *parts: bytes, path: str = PATH, **more: Any) -> httpx.Response:
    headers = {"Content-Type": RELATED, "Accept": "application/dicom+json"}
    return api.post(path, content=body(*parts), headers=headers | more, timeout=30)


def uids(response: httpx.Response, sequence: str) -> list[str]:
    return [one["00081155"]["Value"][0] for one in response.json().get(sequence, {}).get("Value", [])]


def reasons(response: httpx.Response, sequence: str = FAILED) -> list[int]:
    return [one["00081197"]["Value"][0] for one in response.json()[sequence]["Value"]]


def uid_of(data: bytes) -> str:
    return str(read(data).SOPInstanceUID)


def test_objects_are_scored_and_stored_once(api: httpx.Client, server: Server) -> None:
    objects = [photograph(picture(seed)) for seed in range(3)]
    first = send(api, *objects)
    assert (first.status_code, first.headers["content-type"]) == (200, "application/dicom+json"), first.text
    assert uids(first, REFERENCED) == [uid_of(data) for data in objects]
    assert set(first.json()) == {"00081190", REFERENCED}
    assert all(one["00081190"] == {"vr": "UR"} for one in first.json()[REFERENCED]["Value"]), "nothing to retrieve"
    assert send(api, *objects).json() == first.json(), "a repeat is stored, too"
    assert len(server.stand_in.calls) == 3
    rows = execute(
        server,
        "SELECT sop_instance_uid, study_uid, series_uid, sop_class_uid, frame, frames, idempotency_key, patient "
        "FROM instances JOIN predictions ON id = prediction_id WHERE sop_instance_uid = ANY($1)",
        [uid_of(data) for data in objects],
    )
    assert len(rows) == 3
    for row in rows:
        said = read(next(data for data in objects if uid_of(data) == row["sop_instance_uid"]))
        assert (row["study_uid"], row["series_uid"]) == (said.StudyInstanceUID, said.SeriesInstanceUID)
        assert (row["sop_class_uid"], row["frame"], row["frames"]) == (DERMOSCOPIC_PHOTOGRAPHY, 1, 1)
        assert row["idempotency_key"] == f"dicom:{row['sop_instance_uid']}"
        assert row["patient"] is None
    assert len(api.get("/v1/predictions").json()["items"]) == 3


def test_every_frame_has_a_result(api: httpx.Client, server: Server) -> None:
    data = photograph([picture(seed) for seed in range(6)])
    assert send(api, data).status_code == 200
    rows = execute(
        server,
        "SELECT frame, frames, idempotency_key FROM instances JOIN predictions ON id = prediction_id "
        "WHERE sop_instance_uid = $1 ORDER BY frame",
        uid_of(data),
    )
    assert [tuple(row) for row in rows] == [(number, 6, f"dicom:{uid_of(data)}/{number}") for number in range(1, 7)]


def test_another_number_of_frames_is_another_object(api: httpx.Client) -> None:
    frames = [picture(seed) for seed in range(3)]
    whole = photograph(frames)
    named = {"SOPInstanceUID": uid_of(whole), "StudyInstanceUID": read(whole).StudyInstanceUID}
    assert send(api, whole).status_code == 200
    for some in (frames[:2], frames[:1]):
        response = send(api, photograph(some, **named))
        assert (response.status_code, reasons(response)) == (409, [0x0111])


def test_each_object_fails_for_itself_with_the_reason_of_the_standard(api: httpx.Client) -> None:
    study = generate_uid()
    good = photograph(picture(1), StudyInstanceUID=study)
    same_uid = photograph(picture(2), StudyInstanceUID=study, SOPInstanceUID=uid_of(good))
    elsewhere = photograph(picture(3))
    computed = photograph(picture(4), StudyInstanceUID=study, SOPClassUID=CT_IMAGE)
    whole = photograph(picture(5), JPEGBaseline8Bit, StudyInstanceUID=study)
    damaged = whole[:-3000]
    assert send(api, good, path=f"{PATH}/{study}").status_code == 200
    response = send(api, same_uid, elsewhere, computed, damaged, good, b"no DICOM", path=f"{PATH}/{study}")
    assert response.status_code == 202
    assert uids(response, REFERENCED) == [uid_of(good)]
    assert uids(response, FAILED) == [uid_of(data) for data in (same_uid, elsewhere, computed, whole)]
    duplicate, mismatch, class_, undecodable = reasons(response)
    assert (duplicate, mismatch, class_) == (0x0111, 0xA901, 0x0122)
    assert undecodable & 0xF000 == 0xC000
    [unknown] = reasons(response, OTHER)
    assert unknown & 0xF000 == 0xC000
    assert set(response.json()[OTHER]["Value"][0]) == {"00081197"}


def test_nothing_stored_is_a_conflict(api: httpx.Client) -> None:
    response = send(api, photograph(picture(), SOPClassUID=CT_IMAGE), b"")
    assert response.status_code == 409
    assert set(response.json()) == {"00081190", FAILED, OTHER}


def test_a_part_of_another_type_is_refused_alone(api: httpx.Client) -> None:
    good = photograph(picture())
    mixed = body(sample.jpeg(0), kind="image/jpeg").removesuffix(b"--edge--") + body(good)
    response = api.post(PATH, content=mixed, headers={"Content-Type": RELATED})
    assert response.status_code == 202
    assert uids(response, REFERENCED) == [uid_of(good)]
    assert len(reasons(response, OTHER)) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/related; type=application/dicom; boundary=edge",
        'Multipart/Related; boundary="edge"; type="application/dicom"',
        'multipart/related; start="<a>"; boundary=edge; type="Application/DICOM"; start-info=x',
        "multipart/related; boundary=edge",
    ],
)
def test_ways_of_saying_the_type(api: httpx.Client, kind: str) -> None:
    assert send(api, photograph(picture()), **{"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ('multipart/related; type="application/dicom+json"; boundary=edge', 415, "unsupported_media_type"),
        ('multipart/related; type="application/dicom+xml"; boundary=edge', 415, "unsupported_media_type"),
        ("application/dicom", 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=edge", 415, "unsupported_media_type"),
        ("", 415, "unsupported_media_type"),
        ('multipart/related; type="application/dicom"', 400, "request_malformed"),
        ('multipart/related; type="application/dicom"; boundary=other', 400, "request_malformed"),
    ],
)
def test_other_types(api: httpx.Client, kind: str, status: int, code: str) -> None:
    response = send(api, photograph(picture()), **{"Content-Type": kind})
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_malformed_requests(api: httpx.Client, server: Server) -> None:
    good = body(photograph(picture()))
    for content, path in ((b"", PATH), (b"--edge--", PATH), (good[:-4], PATH), (good, f"{PATH}/not.a.uid")):
        response = api.post(path, content=content, headers={"Content-Type": RELATED})
        assert (response.status_code, response.json()["code"]) == (400, "request_malformed"), path
    stranger = httpx.post(server.url + PATH, content=good, headers={"Content-Type": RELATED})
    assert (stranger.status_code, stranger.json()["code"]) == (401, "unauthenticated")
    assert stranger.headers["www-authenticate"] == "Bearer"


def test_too_many_and_too_large(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    good = photograph(picture())
    with monkeypatch.context() as patch:
        patch.setattr(stow, "MAX_OBJECT_BYTES", len(good))
        response = send(api, good, good + bytes(1000))
        assert response.status_code == 202
        assert reasons(response, OTHER) == [0xC002]
    monkeypatch.setattr(stow, "MAX_IMAGES", 2)
    response = send(api, good, good, good)
    assert (response.status_code, response.json()["code"]) == (413, "batch_too_large")


def test_a_busy_server_is_a_reason_to_come_back(api: httpx.Client, server: Server) -> None:
    objects = [photograph(picture(seed)) for seed in range(3)]
    server.stand_in.failure = Overloaded(retry_after=7)
    response = send(api, *objects)
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert reasons(response) == [0xA700] * 3
    server.stand_in.failure = None
    assert send(api, *objects).status_code == 200


def test_what_is_kept_of_a_patient_is_as_at_the_dicom_door(server: Server) -> None:
    """Nothing without a destination, else something sealed; rule by rule it is tested there."""
    email, data = new_email(), photograph(picture(), PatientName="Doe^Jane")
    headers = {"Authorization": f"Bearer {new_key(server.settings, email)}", "Content-Type": RELATED}
    [row] = execute(
        server, "INSERT INTO organisations (id, name) VALUES (gen_random_uuid(), gen_random_uuid()) RETURNING id"
    )
    execute(server, "UPDATE users SET organisation_id = $2 WHERE email = $1", email, row["id"])
    execute(
        server,
        "INSERT INTO destinations (id, organisation_id, kind, address) VALUES (gen_random_uuid(), $1, 'dicom', 'PACS@h:1')",
        row["id"],
    )
    assert httpx.post(server.url + PATH, content=body(data), headers=headers).status_code == 200
    [kept] = execute(server, "SELECT patient FROM instances WHERE sop_instance_uid = $1", uid_of(data))
    assert kept["patient"] is not None
    assert b"Jane" not in kept["patient"]


@pytest.fixture
def client(api: httpx.Client, server: Server) -> DICOMwebClient:
    session = create_session()
    session.headers["Authorization"] = api.headers["Authorization"]
    return DICOMwebClient(f"{server.url}/dicomweb", session=session)


def test_dicomweb_client_stores(client: DICOMwebClient, api: httpx.Client) -> None:
    study = generate_uid()
    objects = [
        photograph(picture(seed), syntax, StudyInstanceUID=study)
        for seed, syntax in enumerate([ExplicitVRLittleEndian, JPEGBaseline8Bit, ExplicitVRLittleEndian])
    ]
    for study_uid in (None, study):
        answer = client.store_instances([read(data) for data in objects], study_instance_uid=study_uid)
        assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
            uid_of(one) for one in objects
        ]
        assert "FailedSOPSequence" not in answer
    assert len(api.get("/v1/predictions").json()["items"]) == 3


def test_dicomweb_client_is_told_of_failures(client: DICOMwebClient) -> None:
    objects = [photograph(picture(1)), photograph(picture(2), SOPClassUID=CT_IMAGE)]
    answer = client.store_instances([read(data) for data in objects])
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [uid_of(objects[0])]
    [failed] = answer.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (uid_of(objects[1]), 0x0122)
    with pytest.raises(HTTPError, match="409"):
        client.store_instances([read(objects[1])])


class Orthanc:
    """Debian's, with its DICOMweb plugin, on ports of its own."""

    def __init__(self, folder: Path, url: str, key: str, *, chunked: bool) -> None:
        self.http, dicom = (free_port() for _ in range(2))
        peer = {
            "Url": f"{url}/dicomweb/",
            "HttpHeaders": {"Authorization": f"Bearer {key}"},
            "ChunkedTransfers": chunked,
        }
        configuration = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.http,
            "DicomPort": dicom,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomWeb": {"Enable": True, "Servers": {"dermserve": peer}},
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self.log = folder / "orthanc.log"
        with self.log.open("wb") as log:
            command = [ORTHANC, folder / "orthanc.json"]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "LC_ALL": "C"}
            )
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.http}", timeout=60)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.api.get("/system").raise_for_status()
                return
            except httpx.HTTPError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def add(self, data: bytes) -> dict[str, str]:
        added: dict[str, str] = self.api.post("/instances", content=data).raise_for_status().json()
        return added

    def forward(self, *resources: str) -> httpx.Response:
        return self.api.post("/dicom-web/servers/dermserve/stow", json={"Resources": list(resources)})

    def stop(self) -> None:
        self.api.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(params=[True, False], ids=["chunked", "whole"])
def orthanc(request: pytest.FixtureRequest, server: Server, api: httpx.Client, tmp_path: Path) -> Iterator[Orthanc]:
    if not (ORTHANC.exists() and PLUGIN.exists()):
        pytest.skip("Orthanc with its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb) is not installed")
    key = api.headers["Authorization"].removeprefix("Bearer ")
    started = Orthanc(tmp_path, server.url, key, chunked=request.param)
    yield started
    started.stop()
    shutil.rmtree(tmp_path / "storage", ignore_errors=True)


def test_orthanc_forwards_a_study(orthanc: Orthanc, api: httpx.Client, server: Server) -> None:
    study, series = generate_uid(), generate_uid()
    objects = [photograph(picture(seed), StudyInstanceUID=study, SeriesInstanceUID=series) for seed in range(5)]
    added = [orthanc.add(data) for data in objects]
    for _ in range(2):
        answer = orthanc.forward(added[0]["ParentStudy"])
        assert answer.status_code == 200, orthanc.log.read_text()[-2000:]
    rows = execute(server, "SELECT sop_instance_uid FROM instances WHERE study_uid = $1", study)
    assert {row["sop_instance_uid"] for row in rows} == {uid_of(data) for data in objects}
    assert len(rows) == len(api.get("/v1/predictions").json()["items"]) == 5


def test_orthanc_is_told_that_an_object_was_refused(orthanc: Orthanc) -> None:
    added = [orthanc.add(photograph(picture(1))), orthanc.add(photograph(picture(2), SOPClassUID=CT_IMAGE))]
    assert orthanc.forward(*(one["ID"] for one in added)).status_code >= 400
    assert orthanc.forward(added[0]["ID"]).status_code == 200


def test_many_senders_at_once(api: httpx.Client, server: Server) -> None:
    objects = [photograph(picture(0), InstanceNumber=number) for number in range(60)]
    groups = [objects[at : at + 10] for at in range(0, 60, 10)]

    def run(group: list[bytes]) -> httpx.Response:
        return httpx.post(
            server.url + PATH, content=body(*group), headers=dict(api.headers) | {"Content-Type": RELATED}, timeout=60
        )

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(run, groups))
    assert [answer.status_code for answer in answers] == [200] * 6
    stored = execute(
        server, "SELECT count(*) FROM instances WHERE sop_instance_uid = ANY($1)", [uid_of(data) for data in objects]
    )
    assert stored[0]["count"] == 60
