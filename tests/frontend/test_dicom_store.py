"""C-STORE: what a gateway is told, and what is in the database then."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from pydicom import uid
from pynetdicom import build_context

from dermserve import dicom
from dermserve.errors import BY_CODE, ImageError, Overloaded, Unavailable
from dermserve.settings import Settings
from frontend.database import Database
from frontend.dicom import room
from frontend.dicom.identifiers import Identifiers
from frontend.models import Destination, Organisation
from frontend.vault import Vault
from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY, waves
from tests.frontend.conftest import Cluster
from tests.frontend.node import EXPLICIT, Door, allow, associated, opened, photograph, read, settings_of, store

MULTIFRAME = "1.2.840.10008.5.1.4.1.1.7.4"
SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGBaseline8Bit,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
    uid.RLELossless,
)


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(settings_of(cluster, tmp_path_factory.mktemp("store"))) as door:
        yield door


@pytest.fixture
def door(running: Door) -> Door:
    running.stand_in.reset()
    return running


def of(door: Door, sop_instance: str) -> list[tuple[str, int, int, bytes]]:
    """Key, frame, number of frames and digest of what is stored of an instance."""
    query = """SELECT idempotency_key, frame, frames, image_sha256 FROM instances JOIN predictions ON id = prediction_id
        WHERE sop_instance_uid = $1 ORDER BY frame"""
    return [tuple(row) for row in door.rows(query, sop_instance)]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: uid.UID(syntax).keyword)
def test_success_means_that_the_result_is_in_the_database(door: Door, syntax: str) -> None:
    data = photograph(waves(), syntax)
    assert store(door, data) == [0x0000]
    said = dicom.identity(data)
    scored = hashlib.sha256(next(dicom.frames(data))).digest()
    assert of(door, said.sop_instance) == [(f"dicom:{said.sop_instance}", 1, 1, scored)]
    assert door.stand_in.calls == [True], "a gateway's images queue behind those of people"


def test_everything_that_can_be_decoded_is_accepted_in_the_sender_s_order(door: Door) -> None:
    contexts = [build_context(DERMOSCOPIC_PHOTOGRAPHY, syntax) for syntax in dicom.TRANSFER_SYNTAXES]
    contexts.append(build_context(DERMOSCOPIC_PHOTOGRAPHY, [uid.MPEG2MPML, uid.JPEGBaseline8Bit, EXPLICIT]))
    contexts.append(build_context(DERMOSCOPIC_PHOTOGRAPHY, [EXPLICIT, uid.JPEGBaseline8Bit]))
    with associated(door, contexts=contexts) as association:
        accepted = [context.transfer_syntax[0] for context in association.accepted_contexts]
    # What a sender's images are in stands first, and not every one could send them otherwise.
    assert accepted == [*dicom.TRANSFER_SYNTAXES, uid.JPEGBaseline8Bit, EXPLICIT]


def test_its_results_belong_to_a_service_account(door: Door) -> None:
    data = photograph(waves(48, 64))
    assert store(door, data) == [0]
    query = "SELECT email, filename FROM instances i JOIN predictions p ON id = prediction_id JOIN users u ON u.id = p.owner_id"
    [row] = door.rows(f"{query} WHERE sop_instance_uid = $1", read(data).SOPInstanceUID)
    assert tuple(row) == ("service:dicom", read(data).SOPInstanceUID)


def test_sending_everything_again_stores_nothing_twice(door: Door) -> None:
    files = [photograph(waves() + number) for number in range(3)]
    before = store(door, *files)
    scored = len(door.stand_in.calls)
    assert before == store(door, *files) == store(door, *reversed(files), calling="OTHER") == [0, 0, 0]
    assert len(door.stand_in.calls) == scored == 3
    assert [len(of(door, read(data).SOPInstanceUID)) for data in files] == [1, 1, 1]


def test_the_same_instance_at_once_over_several_associations_is_one_row(door: Door) -> None:
    data = photograph(waves())
    door.stand_in.delay_s = 0.3
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.extend(store(door, data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 4
    assert len(of(door, read(data).SOPInstanceUID)) == 1


def test_one_uid_with_other_bytes_is_refused_as_a_duplicate(door: Door) -> None:
    first = photograph(waves())
    other = photograph(waves() // 2, SOPInstanceUID=read(first).SOPInstanceUID)
    assert store(door, first, other, first) == [0, 0x0111, 0]
    assert len(of(door, read(first).SOPInstanceUID)) == 1


def test_each_frame_is_a_result_and_success_comes_after_the_last(door: Door) -> None:
    frames = [waves() // (number + 1) for number in range(6)]
    data = photograph(frames, SOPClassUID=MULTIFRAME)
    assert store(door, data) == [0]
    name = read(data).SOPInstanceUID
    digests = [hashlib.sha256(frame).digest() for frame in dicom.frames(data)]
    assert of(door, name) == [(f"dicom:{name}/{n}", n, 6, digest) for n, digest in enumerate(digests, 1)]
    assert len(set(digests)) == 6
    assert store(door, data) == [0]
    assert len(of(door, name)) == 6


def test_a_frame_that_fails_fails_the_object_and_a_repeat_completes_it(door: Door) -> None:
    data = photograph([waves() // (number + 1) for number in range(9)], SOPClassUID=MULTIFRAME)
    infer = door.stand_in.infer
    calls = 0

    async def seventh_fails(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise Overloaded
        return await infer(*arguments, **options)  # type: ignore[arg-type]

    door.stand_in.infer = seventh_fails  # type: ignore[method-assign, assignment]
    try:
        assert store(door, data) == [0xA700]
    finally:
        door.stand_in.infer = infer  # type: ignore[method-assign]
    assert 4 <= len(of(door, read(data).SOPInstanceUID)) < 9
    assert store(door, data) == [0]
    assert [row[1] for row in of(door, read(data).SOPInstanceUID)] == list(range(1, 10))


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 2), (2, 1)])
def test_one_uid_with_another_number_of_frames_is_a_duplicate(door: Door, before: int, after: int) -> None:
    frames = [waves() // (number + 1) for number in range(3)]
    first = photograph(frames[:before], SOPClassUID=MULTIFRAME)
    other = photograph(frames[:after], SOPClassUID=MULTIFRAME, SOPInstanceUID=read(first).SOPInstanceUID)
    assert store(door, first, other, first) == [0, 0x0111, 0]
    assert len(of(door, read(first).SOPInstanceUID)) == before


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"Rows": 8, "Columns": 8}, 0xC005, "image_undecodable"),
        ({"StudyInstanceUID": ""}, 0xC001, "dicom_not_understood"),
        ({"SeriesInstanceUID": "1.02.3"}, 0xC001, "dicom_not_understood"),
        ({"PhotometricInterpretation": "HSV"}, 0xC004, "unsupported_media_type"),
        ({"Rows": 16, "Columns": 192}, 0xC003, "image_too_small"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_code_and_no_word_of_the_patient(
    door: Door, changes: dict[str, object], status: int, code: str
) -> None:
    data = read(photograph(waves(), PatientName="Nobody^Real", **changes))
    with associated(door) as association:
        answer = association.send_c_store(data)
        assert association.send_c_echo().Status == 0, "one bad object does not end the association"
    assert (answer.Status, answer.ErrorComment.split(":")[0]) == (status, code)
    assert "Nobody" not in answer.ErrorComment
    assert "MRN" not in answer.ErrorComment
    assert of(door, data.SOPInstanceUID) == []


def test_a_data_set_that_is_not_of_the_announced_class_is_refused(door: Door) -> None:
    """The request says dermoscopic photography, the data set says it is a secondary capture."""
    data = read(photograph(waves()))
    with associated(door) as association:
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        data.file_meta.MediaStorageSOPClassUID = DERMOSCOPIC_PHOTOGRAPHY
        answer = _send(association, data, DERMOSCOPIC_PHOTOGRAPHY)
    assert answer == 0xA900


def test_a_request_that_is_not_of_its_presentation_context_is_refused(door: Door) -> None:
    data = read(photograph(waves(), SOPClassUID="1.2.840.10008.5.1.4.1.1.7"))
    with associated(door) as association:
        assert _send(association, data, "1.2.840.10008.5.1.4.1.1.7") == 0xA900


def _send(association: object, data: object, announced: str) -> int:
    """A C-STORE whose request is put together by hand."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = announced, data.SOPInstanceUID  # type: ignore[attr-defined]
    request.DataSet = BytesIO(encode(data, False, True))  # type: ignore[arg-type]
    association._reactor_checkpoint.clear()  # type: ignore[attr-defined]
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)  # type: ignore[attr-defined]
    _, answer = association.dimse.get_msg(block=True)  # type: ignore[attr-defined]
    association._reactor_checkpoint.set()  # type: ignore[attr-defined]
    return int(answer.Status)


def test_pressure_is_0xa700_and_the_same_object_is_taken_afterwards(door: Door) -> None:
    data = photograph(waves())
    door.stand_in.down = True
    assert store(door, data) == [0xA700]
    door.stand_in.down, door.stand_in.failure = False, Overloaded()
    assert store(door, data) == [0xA700]
    assert of(door, read(data).SOPInstanceUID) == []
    door.stand_in.failure = None
    assert store(door, data) == [0]


def test_a_database_that_goes_away_is_0xa700_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    with opened(settings_of(cluster, tmp_path)) as door, associated(door) as association:
        first, second = read(photograph(waves())), read(photograph(waves() // 2))
        assert association.send_c_store(first).Status == 0
        cluster.stop()
        try:
            time.sleep(1.1)  # who may send is asked anew
            assert association.send_c_store(second).Status == 0xA700
        finally:
            cluster.start()
        assert association.send_c_store(second).Status == 0
        assert len(of(door, first.SOPInstanceUID)) == len(of(door, second.SOPInstanceUID)) == 1


def test_a_sender_that_sends_more_than_its_limit_is_told_to_wait(cluster: Cluster, tmp_path: Path) -> None:
    with opened(settings_of(cluster, tmp_path, rate_limit=60)) as door:
        statuses = store(door, *[photograph(waves() + number) for number in range(62)])
    assert statuses.count(0xA700) >= 2, "or the minute ended in between"
    assert set(statuses) == {0, 0xA700}


def test_an_object_beyond_the_bound_is_refused_while_it_comes(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.dicom.association.MAX_OBJECT_BYTES", 1_000_000)
    large, small = photograph(waves(700, 700)), photograph(waves())
    assert store(door, large, small) == [0xC002, 0]


def test_no_room_for_an_object_is_0xa700_and_nothing_stays_counted(cluster: Cluster, tmp_path: Path) -> None:
    full = room.Room(max_bytes=100_000)
    settings = settings_of(cluster, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frontend.dicom.__main__.Room", lambda: full)
        with opened(settings) as door:
            large, small = photograph(waves(400, 400)), photograph(waves())
            assert store(door, large, small, large) == [0xA700, 0, 0xA700]
            with associated(door) as association:
                association.send_c_store(read(small))
                association.abort()
            deadline = time.monotonic() + 5
            while full.held != (0, 0) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert full.held == (0, 0)


def test_the_document_names_every_status_with_its_code() -> None:
    text = (Path(__file__).parents[2] / "docs/dicom.md").read_text()
    told = {
        code: int(status, 16)
        for status, codes in re.findall(r"^\| (0x[0-9A-F]{4}) \| (`[^|]*`) \|", text, re.MULTILINE)
        for code in re.findall(r"`([a-z_]+)`", codes)
    }
    images = {code for code, error in BY_CODE.items() if issubclass(error, ImageError | Unavailable)}
    assert told.keys() >= images - {"image_unreadable"}, "whatever an image can be refused as"
    assert told == {code: BY_CODE[code].dicom_status for code in told}
    for name, field in Settings.model_fields.items():
        if name.startswith("dicom_"):
            assert name.removeprefix("dicom_").upper() in text, field.description


def test_a_corrected_header_around_the_same_pixels_is_a_repeat(door: Door) -> None:
    first = photograph(waves(), PatientName="Wrong^Name")
    corrected = photograph(waves(), PatientName="Right^Name", SOPInstanceUID=read(first).SOPInstanceUID)
    assert store(door, first, corrected) == [0, 0]
    assert len(of(door, read(first).SOPInstanceUID)) == 1


def test_every_error_has_words_that_fit_an_error_comment() -> None:
    for error in BY_CODE.values():
        assert f"{error.code}: {error.title}".isascii()


def test_a_storage_class_of_the_settings_is_taken_and_another_is_not(cluster: Cluster, tmp_path: Path) -> None:
    capture = "1.2.840.10008.5.1.4.1.1.7"
    contexts = [build_context(capture, EXPLICIT), build_context(DERMOSCOPIC_PHOTOGRAPHY, EXPLICIT)]
    with (
        opened(settings_of(cluster, tmp_path, dicom_sop_classes=f"{capture}, {MULTIFRAME}")) as door,
        associated(door, contexts=contexts) as association,
    ):
        assert [context.abstract_syntax for context in association.accepted_contexts] == [capture]
        assert [context.result for context in association.rejected_contexts] == [3], "abstract syntax not supported"


@pytest.fixture
def hospital(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Door, UUID]]:
    """A door whose one sender belongs to an organisation with somewhere for reports to go."""
    settings = settings_of(cluster, tmp_path)
    allow(settings, "GATEWAY")

    async def add() -> UUID:
        database = Database(settings.database_url or "")
        async with database.transaction() as session:
            organisation = Organisation(name="Hospital")
            session.add(organisation)
            await session.flush()
            session.add(Destination(organisation_id=organisation.id, kind="dicom", address="PACS@10.0.0.1:104"))
        await database.close()
        return organisation.id

    organisation = asyncio.run(add())
    with opened(settings) as door:
        door.rows("UPDATE users SET organisation_id = $1", organisation)
        yield door, organisation


def test_a_patient_is_a_pseudonym_unless_the_organisation_keeps_patients(hospital: tuple[Door, UUID]) -> None:
    door, organisation = hospital
    door.stand_in.reset()
    identifiers = Identifiers(Vault.of(door.settings))
    first, second, stranger = (photograph(waves() + n, PatientID=f"MRN-{n // 2}") for n in range(3))
    assert store(door, first, second, stranger) == [0, 0, 0]

    def kept(data: bytes) -> bytes:
        return bytes(
            door.rows("SELECT patient FROM instances WHERE sop_instance_uid = $1", read(data).SOPInstanceUID)[0][0]
        )

    assert b"MRN" not in kept(first)
    patients = [identifiers.read(kept(data)) for data in (first, second, stranger)]
    assert patients[0] == patients[1] != patients[2]
    assert patients[0] is not None
    assert (patients[0].id[:2], patients[0].birth_date, patients[0].sex) == ("DS", "", "")
    assert patients[0].name == patients[0].id
    door.rows("UPDATE organisations SET keeps_patients = true WHERE id = $1", organisation)
    time.sleep(1.1)  # a sender is trusted for a second
    true = photograph(waves() + 9, PatientID="MRN-9", PatientName="Müller^Ärztin", SpecificCharacterSet="ISO_IR 192")
    assert store(door, true) == [0]
    assert b"MRN" not in kept(true), "sealed"
    patient = identifiers.read(kept(true))
    assert patient is not None
    assert (patient.id, patient.name) == ("MRN-9", "Müller^Ärztin")
    assert len(door.rows("SELECT 1 FROM outbox")) == 4, "each result is on its way to the destination"


def test_nothing_is_kept_of_a_patient_where_no_report_is_sent(door: Door) -> None:
    data = photograph(waves())
    assert store(door, data) == [0]
    [row] = door.rows("SELECT patient FROM instances WHERE sop_instance_uid = $1", read(data).SOPInstanceUID)
    assert row["patient"] is None


def test_web_workers_do_not_carry_the_dicom_network() -> None:
    program = "import sys, frontend.app, frontend.commands; sys.exit('pynetdicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
