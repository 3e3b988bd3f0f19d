"""The DICOM door of the real stack: the process, its supervisor, the real model."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
from pydicom import uid
from pynetdicom import AE, build_context

from dermserve import dicom, sample
from frontend.database import URL_FILE
from frontend.dicom.outgoing import settle
from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY, waves
from tests.frontend.node import EXPLICIT, photograph, read
from tests.system.stack import Stack


def rows(stack: Stack, query: str, *arguments: object) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect((stack.state_dir / URL_FILE).read_text())
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


def door(stack: Stack) -> psutil.Process:
    for process in stack.processes():
        with contextlib.suppress(psutil.Error):
            if "frontend.dicom" in process.cmdline():
                return process
    raise AssertionError("no DICOM door runs")


def send_until_acknowledged(stack: Stack, files: list[bytes], acknowledged: dict[str, int]) -> None:
    """As a gateway does: what was not acknowledged is sent again, over a new association where need be."""
    ae = AE(ae_title="GATEWAY")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    contexts = [build_context(DERMOSCOPIC_PHOTOGRAPHY, EXPLICIT)]
    waiting = [read(data) for data in files]
    deadline = time.monotonic() + 120
    while waiting:
        assert time.monotonic() < deadline, "the stream did not end"
        association = ae.associate("127.0.0.1", stack.ports["DICOM_PORT"], contexts=contexts, ae_title="DERMSERVE")
        while waiting and association.is_established:
            settle(association)
            with contextlib.suppress(RuntimeError):
                status = association.send_c_store(waiting[0]).get("Status", -1)
                if status == 0x0000:
                    done = waiting.pop(0)
                    acknowledged[done.SOPInstanceUID] = acknowledged.get(done.SOPInstanceUID, 0) + 1
                else:
                    assert status in (-1, 0xA700), hex(status)
        settle(association)
        if association.is_established:
            association.release()
        else:
            time.sleep(0.2)


def stored(stack: Stack) -> dict[str, int]:
    counts = rows(stack, "SELECT sop_instance_uid, count(*) FROM instances GROUP BY 1")
    return {row[0]: row[1] for row in counts}


def test_an_image_by_c_store_has_the_result_that_it_has_by_http(stack: Stack, api_key: str) -> None:
    data = photograph(sample.draw(900), uid.JPEGBaseline8Bit)
    path = stack.state_dir / "one.dcm"
    path.write_bytes(data)
    if shutil.which("dcmsend") is None:
        pytest.skip("DCMTK is not installed (deploy/setup.sh system)")
    sent = ["dcmsend", "-aec", "DERMSERVE", "127.0.0.1", str(stack.ports["DICOM_PORT"]), str(path)]
    subprocess.run(sent, check=True, timeout=60)
    query = "SELECT p.* FROM predictions p JOIN instances ON id = prediction_id WHERE sop_instance_uid = $1"
    [row] = rows(stack, query, read(data).SOPInstanceUID)
    over_http = stack.predict(next(dicom.frames(data)), api_key, Content_Type="application/dicom").body
    assert list(over_http["probabilities"].values()) == pytest.approx(row["probabilities"])
    assert row["image_format"] == "dicom"


@pytest.mark.slow
def test_a_door_killed_in_mid_stream_loses_nothing_acknowledged_and_doubles_nothing(stack: Stack) -> None:
    files = [[photograph(waves() // (1 + sender) + number) for number in range(40)] for sender in range(3)]
    acknowledged: dict[str, int] = {}
    threads = [threading.Thread(target=send_until_acknowledged, args=(stack, mine, acknowledged)) for mine in files]
    for thread in threads:
        thread.start()
    chance = random.Random(6)
    for kill in range(3):
        time.sleep(chance.uniform(0.3, 0.9))
        assert len(acknowledged) < 120, "the stream is still on"
        killed = door(stack)
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        heard = dict(acknowledged)
        assert heard.keys() <= stored(stack).keys(), f"acknowledged before kill {kill} and not stored"
        _listening_again(stack)
    for thread in threads:
        thread.join(150)
    names = {read(data).SOPInstanceUID for mine in files for data in mine}
    assert acknowledged.keys() == names
    found = {name: count for name, count in stored(stack).items() if name in names}
    assert found == dict.fromkeys(names, 1)


def _listening_again(stack: Stack) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", stack.ports["DICOM_PORT"]), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError("the supervisor did not start the door again")


def test_the_door_writes_no_object_to_the_disk(stack: Stack, tmp_path: Path) -> None:
    """Whatever is on the disk below the state folder holds nothing of an object that was sent."""
    data = photograph(waves(300, 400), PatientName="Needle^Inhaystack")
    send_until_acknowledged(stack, [data], {})
    for path in stack.state_dir.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError):
                assert b"Needle^Inhaystack" not in path.read_bytes(), path
