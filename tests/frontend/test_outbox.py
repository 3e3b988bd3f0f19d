"""Results on their way out to a real receiver: signed, sent again, given up, never lost and never holding each other up."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from fhir.resources.diagnosticreport import DiagnosticReport
from sqlalchemy import text

from dermserve.dicom.identity import Patient
from dermserve.settings import Settings
from frontend import outbox
from frontend.delivery import node, web
from frontend.dicom.identifiers import Identifiers
from frontend.history import History
from frontend.identity.users import Users
from frontend.lesions import Lesions
from frontend.outbox import Kind, back_off
from frontend.reports import webhook
from frontend.reports.facts import Facts
from frontend.reports.identity import message_id
from tests.frontend.conftest import Cluster
from tests.frontend.sending import Hospital, Receiver, Request, hospital, origin, worker_process

LOOPBACK = "127.0.0.0/8"


@pytest.fixture
def own(cluster: Cluster, settings: Settings) -> Settings:
    """Settings with a database of their own, by which results go to this machine."""
    return settings.model_copy(update={"database_url": cluster.create(), "delivery_networks": LOOPBACK})


def run(own: Settings, work: Callable[[Hospital], Any]) -> None:
    async def on_it() -> None:
        async with hospital(own) as made:
            await work(made)

    asyncio.run(on_it())


def checked(secret: str, request: Request) -> None:
    """What the specification asks a receiver to check."""
    covered = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, covered, hashlib.sha256).digest()).decode()
    assert hmac.compare_digest(request.headers["webhook-signature"], f"v1,{expected}")
    assert abs(time.time() - int(request.headers["webhook-timestamp"])) < 60


def test_a_webhook_gets_every_result_signed(own: Settings) -> None:
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        destination, secret = await here.add(Kind.WEBHOOK, receiver.url)
        assert secret
        results = [await here.result(origin()), await here.result(None, image_format="jpeg")]
        async with here.working():
            await here.until(here.none_pending)
        assert sorted(receiver.ids) == sorted(message_id(destination, result) for result in results)
        for request in receiver.requests:
            checked(secret, request)
            assert request.headers["content-type"] == "application/json"
        assert {json.loads(request.body)["data"]["id"] for request in receiver.requests} == set(map(str, results))
        assert (
            'dermserve_deliveries_total{kind="webhook",outcome="delivered"} 2.0' in here.metrics.exposition().decode()
        )

    with receiver.listening():
        run(own, scenario)


def test_the_fhir_form_arrives_as_such(own: Settings) -> None:
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        _, secret = await here.add(Kind.FHIR, receiver.url)
        result = await here.result(origin())
        async with here.working():
            await here.until(here.none_pending)
        (request,) = receiver.requests
        checked(secret or "", request)
        assert request.headers["content-type"] == "application/fhir+json"
        assert DiagnosticReport.model_validate_json(request.body).id == str(result)

    with receiver.listening():
        run(own, scenario)


def test_nothing_goes_to_another_organisations_destination(own: Settings) -> None:
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        async with hospital(own) as other:
            await other.result(origin())
        assert await here.outbox.figures() == (0, 0, 0.0)

    with receiver.listening():
        run(own, scenario)


def test_an_attempt_that_failed_in_passing_is_made_again_with_the_same_id(own: Settings) -> None:
    answers = iter([(503, {}), (429, {"Retry-After": "1800"}), (408, {}), (200, {})])
    receiver = Receiver(lambda _: next(answers))
    bodies = receiver.requests

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        await here.result(origin())
        waits = []
        for count in range(1, 5):
            async with here.working():  # a new worker: what one learned about the destination is not asked here
                await here.until(lambda count=count: len(bodies) == count)
                await here.until(lambda count=count: _attempted(here, count))
            waits += await here.fetch("SELECT extract(epoch FROM due_at - now()), error FROM outbox WHERE attempts < 4")
            await here.hurry()
        assert len(set(receiver.ids)) == 1
        assert len({request.body for request in bodies}) == 1
        assert [error for _, error in waits] == ["HTTP 503", "HTTP 429", "HTTP 408"]
        assert 3 < waits[0][0] < 7
        assert 1790 < waits[1][0] <= 1800
        assert await here.none_pending()

    with receiver.listening():
        run(own, scenario)


async def _attempted(here: Hospital, count: int) -> bool:
    """Whether the outcome of this attempt is marked, too."""
    query = "SELECT 1 FROM outbox WHERE attempts = :count AND (error IS NOT NULL OR delivered_at IS NOT NULL)"
    held = " AND (delivered_at IS NOT NULL OR due_at NOT BETWEEN now() + interval '150 s' AND now() + interval '181 s')"
    return bool(await here.fetch(query + held, count=count))


def test_what_is_refused_for_good_is_seen_and_sent_again_by_command(own: Settings) -> None:
    status = [404]
    receiver = Receiver(lambda _: (status[0], {"Location": "http://169.254.169.254/"}))

    async def scenario(here: Hospital) -> None:
        destination, _ = await here.add(Kind.WEBHOOK, receiver.url)
        await here.result(origin())
        async with here.working():
            await here.until(here.none_pending)
            assert (await here.outbox.figures()).failed == 1
            (listed,) = await here.destinations.all()
            assert (listed.pending, listed.failed, listed.last_error) == (0, 1, "HTTP 404")
            status[0] = 302
            assert await here.destinations.send_again(destination) == (1, 0)
            await here.until(lambda: len(receiver.requests) == 2)
            await here.until(here.none_pending)
            assert "not followed" in ((await here.destinations.all())[0].last_error or "")
            status[0] = 200
            await here.destinations.send_again(destination)
            await here.until(here.none_pending)
            (listed,) = await here.destinations.all()
            assert (listed.pending, listed.failed, listed.delivered, listed.last_error) == (0, 0, 1, None)
        assert len(set(receiver.ids)) == 1

    with receiver.listening():
        run(own, scenario)


def test_after_a_week_it_is_given_up_and_can_be_sent_again(own: Settings) -> None:
    receiver = Receiver(lambda _: (500, {}))

    async def scenario(here: Hospital) -> None:
        destination, _ = await here.add(Kind.WEBHOOK, receiver.url)
        await here.result(origin())
        await here.fetch("UPDATE outbox SET since = now() - interval '8 days' RETURNING id")
        assert (await here.outbox.figures()).oldest_s > 600_000
        async with here.working():
            await here.until(here.none_pending)
            assert (await here.destinations.all())[0].last_error == "given up after 7 days: HTTP 500"
            receiver.answer = lambda _: (200, {})
            await here.destinations.send_again(destination)
            await here.until(here.none_pending)
        assert (await here.outbox.figures()).failed == 0

    with receiver.listening():
        run(own, scenario)


def test_waits_double_from_five_seconds_to_an_hour_and_are_never_the_same() -> None:
    waits = [back_off(attempt) for attempt in range(1, 200)]
    assert all(5 <= wait <= 3600 for wait in waits)
    assert 5 <= waits[0] <= 6.25
    assert 40 <= waits[3] <= 50
    assert all(wait >= 2880 for wait in waits[10:])
    assert len(set(waits)) == len(waits)


def test_a_destination_that_hangs_holds_up_nobody_else(own: Settings) -> None:
    let_go = threading.Event()
    hanging, quick = Receiver(lambda _: (200, {"X-Waited": str(let_go.wait(60))})), Receiver()

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, hanging.url)
        for _ in range(30):  # far more than it may have under way at once, and all of them due earlier
            await here.result(origin())
        await here.add(Kind.WEBHOOK, quick.url)
        async with here.working():
            await here.until(lambda: len(hanging.requests) == 4)
            results = [await here.result(origin()) for _ in range(10)]
            await here.until(lambda: len(quick.requests) == 10, timeout_s=10)
            assert len(hanging.requests) == 4, "no more at once"
            let_go.set()
            await here.until(here.none_pending)
        assert len(set(hanging.ids)) == 30 + len(results)

    with hanging.listening(), quick.listening():
        run(own, scenario)


def test_a_destination_that_was_down_gets_everything_once_it_is_up(own: Settings) -> None:
    receiver = Receiver()
    with receiver.listening():
        pass  # its port is known, and nobody listens there

    async def scenario(here: Hospital) -> None:
        destination, _ = await here.add(Kind.WEBHOOK, receiver.url)
        results = [await here.result(origin()) for _ in range(20)]
        async with here.working():
            await here.until(lambda: _postponed(here))
            await asyncio.sleep(1.5)
            figures = await here.outbox.figures()
            assert (figures.pending, figures.failed) == (20, 0)
            assert sum(row.attempts for row in await here.fetch("SELECT attempts FROM outbox")) <= 4, "it is left alone"
        with receiver.listening():
            await here.destinations.send_again(destination)
            async with here.working():
                await here.hurry()
                await here.until(here.none_pending)
        assert sorted(receiver.ids) == sorted(message_id(destination, result) for result in results)

    run(own, scenario)


async def _postponed(here: Hospital) -> bool:
    return bool(await here.fetch("SELECT 1 FROM outbox WHERE error LIKE 'no connection%'"))


def test_a_worker_killed_between_sending_and_marking_sends_again_and_the_receiver_can_tell(own: Settings) -> None:
    killed: list[subprocess.Popen[bytes]] = []
    seen: Counter[str] = Counter()

    def kill_on_first_sight(request: Request) -> tuple[int, dict[str, str]]:
        seen[request.headers["webhook-id"]] += 1
        if seen[request.headers["webhook-id"]] == 1 and killed:
            killed.pop().send_signal(signal.SIGKILL)  # it has sent, and will never mark
        return 200, {}

    receiver = Receiver(kill_on_first_sight)

    async def scenario(here: Hospital) -> None:
        destination, secret = await here.add(Kind.WEBHOOK, receiver.url)
        results = [await here.result(origin()) for _ in range(6)]
        process = worker_process(own)
        killed.append(process)
        assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
        left = (await here.outbox.figures()).pending
        assert left >= 1
        await here.fetch(
            "UPDATE outbox SET due_at = now() WHERE delivered_at IS NULL RETURNING id"
        )  # the lease is over
        async with here.working():
            await here.until(here.none_pending)
        assert set(seen) == {message_id(destination, result) for result in results}, "nothing is lost"
        assert max(seen.values()) == 2, "what was sent and not marked came again, under its name"
        for request in receiver.requests:
            checked(secret or "", request)

    with receiver.listening():
        run(own, scenario)


def test_several_workers_send_each_result_once(own: Settings) -> None:
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        for _ in range(40):
            await here.result(origin())
        async with here.working(), here.working(), here.working():
            await here.until(here.none_pending)
        assert Counter(Counter(receiver.ids).values()) == {1: 40}

    with receiver.listening():
        run(own, scenario)


def test_an_outcome_that_comes_late_changes_nothing_that_another_worker_has_done(own: Settings) -> None:
    async def scenario(here: Hospital) -> None:
        destination, _ = await here.add(Kind.WEBHOOK, "http://127.0.0.1:9/")
        await here.result(origin())
        (slow,) = await here.outbox.claim(destination, 5)
        assert await here.outbox.claim(destination, 5) == [], "it is held"
        await here.hurry()
        (other,) = await here.outbox.claim(destination, 5)
        await here.outbox.failed(slow, "too late")
        assert (await here.outbox.figures()).failed == 0
        await here.outbox.delivered(other)
        await here.outbox.postponed(slow, "too late", wait_s=0)
        assert await here.outbox.figures() == (0, 0, 0.0)

    run(own, scenario)


def test_a_result_or_an_account_that_is_deleted_takes_its_deliveries_along(own: Settings) -> None:
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        results = [await here.result(origin()) for _ in range(3)]
        await History(here.database, Lesions(here.database)).delete(here.sender, results[0])
        assert (await here.outbox.figures()).pending == 2
        await Users(here.database).delete(here.sender)
        assert (await here.outbox.figures()).pending == 0
        async with here.working():
            await asyncio.sleep(0.3)
        assert receiver.requests == []

    with receiver.listening():
        run(own, scenario)


def test_a_destination_that_is_being_removed_does_not_fail_a_result(own: Settings) -> None:
    async def scenario(here: Hospital) -> None:
        leaving, _ = await here.add(Kind.WEBHOOK, "http://127.0.0.1:9/")
        staying, _ = await here.add(Kind.WEBHOOK, "http://127.0.0.1:10/")
        async with here.database.transaction() as session:
            await session.execute(text("DELETE FROM destinations WHERE id = :id"), {"id": leaving})
            storing = asyncio.create_task(here.result(origin()))
            await asyncio.sleep(0.3)
            assert not storing.done()
        await storing
        assert [row.destination_id for row in await here.fetch("SELECT destination_id FROM outbox")] == [staying]

    run(own, scenario)


def _sealed(here: Hospital) -> bytes:
    patient = Patient(id="4711", name="Roe^Jane", birth_date="19500131", sex="F")  # made up
    return Identifiers(here.vault).kept(patient, study_uid="1.2.3", organisation=uuid4(), as_it_came=True)


async def _kept(here: Hospital, result: UUID) -> bool:
    (found,) = await here.fetch("SELECT patient FROM instances WHERE prediction_id = :id", id=result)
    return found.patient is not None


def test_what_was_kept_of_the_patient_goes_with_the_last_delivery(own: Settings) -> None:
    first, second = Receiver(), Receiver(lambda _: (400, {}))

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, first.url)
        other, _ = await here.add(Kind.FHIR, second.url)
        result = await here.result(origin(patient=_sealed(here)))
        async with here.working():
            await here.until(here.none_pending)
            assert await _kept(here, result), "one of two may still be sent again"
            second.answer = lambda _: (200, {})
            await here.destinations.send_again(other)
            await here.until(here.none_pending)
        assert not await _kept(here, result)
        assert json.loads(first.requests[0].body)["data"]["dicom"]["patient_id"] == "4711"
        assert json.loads(second.requests[1].body)["subject"]["identifier"]["value"] == "4711"

    with first.listening(), second.listening():
        run(own, scenario)


def test_two_last_deliveries_at_the_same_time_erase_the_patient(own: Settings) -> None:
    async def scenario(here: Hospital) -> None:
        destinations = [(await here.add(Kind.WEBHOOK, f"http://127.0.0.1:{port}/"))[0] for port in range(9, 13)]
        result = await here.result(origin(patient=_sealed(here)))
        parcels = [(await here.outbox.claim(destination, 1))[0] for destination in destinations]
        await asyncio.gather(*map(here.outbox.delivered, parcels))
        assert not await _kept(here, result)

    run(own, scenario)


def test_no_patient_is_kept_for_a_destination_that_was_removed(own: Settings) -> None:
    async def scenario(here: Hospital) -> None:
        destination, _ = await here.add(Kind.WEBHOOK, "http://127.0.0.1:9/")
        result = await here.result(origin(patient=_sealed(here)))
        assert await here.destinations.remove(destination) == 1
        assert not await _kept(here, result)
        stray = await here.result(origin(patient=_sealed(here)))
        await here.outbox.reap()
        assert not await _kept(here, stray)

    run(own, scenario)


def test_a_patient_sealed_with_another_key_is_not_replaced_by_a_pseudonym(own: Settings) -> None:
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        await here.result(origin(patient=b"sealed elsewhere"))
        async with here.working():
            await here.until(here.none_pending)
        assert receiver.requests == []
        assert "another key" in ((await here.destinations.all())[0].last_error or "")

    with receiver.listening():
        run(own, scenario)


def test_a_report_that_cannot_be_made_waits_alone_and_no_word_of_the_patient_is_kept_or_logged(
    own: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    made = webhook.body

    def fail_for_one(facts: Facts) -> bytes:
        if facts.patient and facts.patient.name:
            raise ValueError(f"invalid: {facts.patient.name}")
        return made(facts)

    monkeypatch.setattr(webhook, "body", fail_for_one)

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        await here.result(origin(patient=_sealed(here)))
        await here.result(origin())
        async with here.working():
            await here.until(lambda: receiver.requests)
            await here.until(lambda: _with_error(here))
        (listed,) = await here.destinations.all()
        assert (listed.pending, listed.delivered, listed.last_error) == (1, 1, "not sent: ValueError")
        assert "ValueError at fail_for_one" in caplog.text
        assert "Roe" not in caplog.text

    with receiver.listening():
        run(own, scenario)


def test_images_of_one_study_have_one_pseudonym_that_another_server_does_not_give(own: Settings) -> None:
    receiver = Receiver()
    study = "1.2.3.4"

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url)
        for of in (origin(study_uid=study), origin(study_uid=study), origin()):
            await here.result(of)
        async with here.working():
            await here.until(here.none_pending)

    def names() -> list[str]:
        found = [json.loads(request.body)["data"]["dicom"] for request in receiver.requests]
        return [one["patient_id"] for one in sorted(found, key=lambda one: one["study_instance_uid"] != study)]

    with receiver.listening():
        run(own, scenario)
        same, again, other = names()
        assert same == again != other
        assert same.startswith("derm-")
        receiver.requests.clear()
        run(own.model_copy(update={"state_dir": own.state_dir / uuid4().hex}), scenario)
        assert same not in names()


def test_delivered_rows_are_reaped_after_thirty_days(own: Settings) -> None:
    async def scenario(here: Hospital) -> None:
        destination, _ = await here.add(Kind.WEBHOOK, "http://127.0.0.1:9/")
        for _ in range(3):
            await here.result(origin())
        parcels = await here.outbox.claim(destination, 2)
        for parcel in parcels:
            await here.outbox.delivered(parcel)
        age = "UPDATE outbox SET delivered_at = now() - interval '31 days' WHERE id = :id RETURNING id"
        await here.fetch(age, id=parcels[0].id)
        assert await here.outbox.reap() == 1
        (listed,) = await here.destinations.all()
        assert (listed.pending, listed.delivered) == (1, 1)

    run(own, scenario)


def test_nothing_is_sent_to_a_network_that_is_not_permitted(own: Settings) -> None:
    """Not even where the destination was entered while it was."""
    receiver = Receiver()

    async def scenario(here: Hospital) -> None:
        await here.add(Kind.WEBHOOK, receiver.url.replace("127.0.0.1", "localhost"))
        await here.result(origin())
        here.settings = own.model_copy(update={"delivery_networks": None})
        async with here.working():
            await here.until(lambda: _with_error(here))
        assert receiver.requests == []
        assert "network" in ((await here.destinations.all())[0].last_error or "")

    with receiver.listening():
        run(own, scenario)


async def _with_error(here: Hospital) -> bool:
    return bool(await here.fetch("SELECT 1 FROM outbox WHERE error IS NOT NULL"))


def test_an_answer_without_end_is_not_read_to_its_end(own: Settings) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        written = 0
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                written += 65536
        except OSError:
            sizes.append(written)

    sizes: list[int] = []

    async def scenario(here: Hospital) -> None:
        server = await asyncio.start_server(endless, "127.0.0.1", 0)
        await here.add(Kind.WEBHOOK, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await here.result(origin())
        async with here.working():
            await here.until(here.none_pending)
            await here.until(lambda: sizes)
        server.close()

    run(own, scenario)
    assert sizes[0] < 50_000_000


def test_a_lease_is_longer_than_the_longest_attempt() -> None:
    assert outbox.LEASE.total_seconds() > max(web.LONGEST_S, node.LONGEST_S)
