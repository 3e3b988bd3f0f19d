"""Where results go: entered, refused, listed and removed; and which networks are never sent to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from dermserve.errors import Conflict, DermserveError, NotFound, RequestInvalid, StartupError
from dermserve.settings import Settings
from frontend import audit
from frontend.commands import admin
from frontend.database import Database
from frontend.destinations import check_address
from frontend.networks import Networks, Refused
from frontend.outbox import Kind
from tests.frontend.conftest import Cluster, Server
from tests.frontend.sending import Hospital, hospital, origin

GOOD = {
    Kind.C_STORE: ["dicom://ARCHIVE@pacs:104", "dicom+tls://A%20B@10.0.0.5:2762", "dicom://X@[fd00::7]:104"],
    Kind.STOW: ["https://pacs.clinic.example/dicom-web", "https://10.1.2.3:8443/rs"],
    Kind.WEBHOOK: ["https://clinic.example/results?door=1"],
    Kind.FHIR: ["https://clinic.example:444/fhir"],
}
BAD = {
    Kind.C_STORE: [
        *("dicom://pacs:104", "dicom://ARCHIVE@pacs", "dicom://ARCHIVE:x@pacs:104", "https://ARCHIVE@pacs:104"),
        *(
            "dicom://SEVENTEEN_LETTERS@pacs:104",
            "dicom://A%5CB@pacs:104",
            "dicom://%20@pacs:104",
            "dicom://A@pacs:99999",
        ),
    ],
    Kind.STOW: ["http://pacs/dicom-web", "https://user:word@pacs/", "https://pacs/dicom-web?x=1", "dicom://A@pacs:104"],
    Kind.WEBHOOK: [
        "ftp://clinic.example/",
        "https:///results",
        "clinic.example",
        "https://c/#x",
        "https://169.254.169.254/",
    ],
    Kind.FHIR: [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://0.0.0.0/",
        "https://[fe80::1]/",
    ],
}


@pytest.mark.parametrize(("kind", "address"), [(kind, one) for kind, some in GOOD.items() for one in some])
def test_addresses_that_are_taken(kind: Kind, address: str) -> None:
    assert check_address(kind, f" {address} ", Networks(None)) == address


@pytest.mark.parametrize(("kind", "address"), [(kind, one) for kind, some in BAD.items() for one in some])
def test_addresses_that_are_refused(kind: Kind, address: str) -> None:
    with pytest.raises(RequestInvalid):
        check_address(kind, address, Networks(None))


def test_http_only_where_it_is_said() -> None:
    assert check_address(Kind.STOW, "http://pacs/rs", Networks(None), allow_http=True) == "http://pacs/rs"


@pytest.mark.parametrize(
    ("address", "by_default"),
    [
        *(("10.0.0.5", True), ("192.168.1.1", True), ("fd00::1", True), ("93.184.216.34", True)),
        *(("127.0.0.1", False), ("127.9.9.9", False), ("::1", False), ("169.254.169.254", False), ("fe80::1", False)),
        *(("fd00:ec2::254", False), ("100.100.100.200", False), ("224.0.0.1", False), ("255.255.255.255", False)),
        *(("::ffff:169.254.169.254", False), ("64:ff9b::a9fe:a9fe", False), ("::", False), ("0.0.0.0", False)),
    ],
)
def test_networks_that_are_sent_to_without_a_list(address: str, by_default: bool) -> None:
    assert Networks(None).permits(ip_address(address)) is by_default


def test_a_list_permits_what_it_names_and_nothing_else() -> None:
    listed = Networks(["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"])
    permitted = ["10.9.8.7", "127.0.0.1", "fd12::1", "::ffff:10.0.0.1"]
    assert all(listed.permits(ip_address(one)) for one in permitted)
    assert not any(listed.permits(ip_address(one)) for one in ["127.0.0.2", "192.168.0.1", "8.8.8.8", "2001:db8::1"])
    with pytest.raises(StartupError, match="DELIVERY_NETWORKS"):
        Networks(["10.0.0.0/33"])


def test_a_name_is_judged_by_what_it_means_now() -> None:
    assert asyncio.run(Networks(["127.0.0.0/8"]).resolve("localhost", 80)) == "127.0.0.1"
    with pytest.raises(Refused):
        asyncio.run(Networks(None).resolve("localhost", 80))


def test_secrets_of_each_kind(settings: Settings) -> None:
    async def scenario() -> None:
        async with hospital(settings) as here:
            for kind, secret in ((Kind.WEBHOOK, "short"), (Kind.STOW, "two words"), (Kind.C_STORE, "any")):
                with pytest.raises(RequestInvalid):
                    await here.add(kind, GOOD[kind][0], secret)
            with pytest.raises(NotFound):
                await here.destinations.add("nowhere", Kind.STOW, GOOD[Kind.STOW][0])
            _, made = await here.add(Kind.WEBHOOK, GOOD[Kind.WEBHOOK][0])
            assert made
            with pytest.raises(Conflict):
                await here.add(Kind.WEBHOOK, GOOD[Kind.WEBHOOK][0], made)
            rows = await here.fetch("SELECT secret FROM destinations")
            assert not [row for row in rows if made.encode() in row.secret], "it is kept sealed"

    asyncio.run(scenario())


@pytest.fixture
def admin_of(cluster: Cluster, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    own = settings.model_copy(update={"database_url": cluster.create()})
    monkeypatch.setenv("DERMSERVE_DATABASE_URL", own.database_url or "")
    monkeypatch.setenv("DERMSERVE_STATE_DIR", str(own.state_dir))
    return own


def command(*arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(admin, arguments, input=said, catch_exceptions=True)


def in_hospital(own: Settings, work: Callable[[Hospital], object]) -> None:
    async def on_it() -> None:
        async with hospital(own) as here:
            await asyncio.to_thread(work, here)

    asyncio.run(on_it())


def test_destinations_by_command(admin_of: Settings) -> None:
    def scenario(here: Hospital) -> None:
        assert command("destinations").output == "Results are sent nowhere.\n"
        added = command("add-destination", "--organisation", here.name, "webhook", "https://clinic.example/results")
        assert "shown only now: whsec_" in added.output
        with_token = command(
            *(
                "add-destination",
                "--organisation",
                here.name,
                "stow-rs",
                "https://pacs.example/rs",
                "--secret-file",
                "-",
            ),
            said="a-token\n",
        )
        assert "shown" not in with_token.output
        first, second = (output.split()[3].rstrip(";") for output in (added.output, with_token.output))
        listed = command("destinations").output
        assert (
            f"{first}  webhook  https://clinic.example/results  {here.name}: 0 pending, 0 failed, 0 delivered" in listed
        )
        assert "a-token" not in listed
        assert "whsec_" not in listed
        assert command("retry-deliveries", first).output == "Sent again: 0 that were given up, 0 that waited.\n"
        assert command("retry-deliveries", "--all").exit_code == 0
        assert command("retry-deliveries").exit_code == 2
        assert command("remove-destination", second).output == "Removed; 0 deliveries were dropped.\n"
        assert isinstance(command("remove-destination", second).exception, NotFound)
        refused = command("add-destination", "--organisation", here.name, "webhook", "http://clinic.example/")
        assert isinstance(refused.exception, RequestInvalid)
        assert "--allow-http" in str(refused.exception)

    in_hospital(admin_of, scenario)

    async def noted() -> list[str]:
        database = Database(admin_of.database_url or "")
        found = [entry.action async for entry in audit._entries(database)]
        await database.close()
        return [action for action in found if action.startswith(("destination", "deliveries"))]

    assert asyncio.run(noted()) == [
        *("destination.added", "destination.added", "deliveries.retried", "deliveries.retried", "deliveries.retried"),
        "destination.removed",
    ]


def test_what_waits_is_counted_and_hurried(admin_of: Settings) -> None:
    async def scenario() -> None:
        async with hospital(admin_of) as here:
            destination, _ = await here.add(Kind.WEBHOOK, "https://clinic.example/results")
            for _ in range(3):
                await here.result(origin())
            (held, gone) = await here.outbox.claim(destination, 2)
            await here.outbox.failed(gone, "HTTP 410")
            wait = "UPDATE outbox SET due_at = now() + interval '1 hour', error = 'HTTP 503' WHERE attempts = 0 RETURNING id"
            await here.fetch(wait)
            listed = (await asyncio.to_thread(command, "destinations")).output
            assert "2 pending, 1 failed, 0 delivered, the oldest for 0:00:0" in listed
            assert "last: HTTP 410" in listed
            again = (await asyncio.to_thread(command, "retry-deliveries", str(destination))).output
            assert again == "Sent again: 1 that were given up, 1 that waited.\n"
            assert len(await here.outbox.claim(destination, 9)) == 2, "what a worker holds is left to it"
            await here.outbox.delivered(held)

    asyncio.run(scenario())


def test_metrics_show_the_outbox_where_no_worker_runs(cluster: Cluster, start: Callable[..., Server]) -> None:
    server = start(database_url=cluster.create())

    async def scenario() -> None:
        async with hospital(server.settings) as here:
            await here.add(Kind.WEBHOOK, "https://clinic.example/results")
            await here.result(origin())
            await here.fetch("UPDATE outbox SET since = now() - interval '1 hour' RETURNING id")

    asyncio.run(scenario())
    said = httpx.get(f"{server.url}/metrics").text
    assert "dermserve_outbox_pending 1.0" in said
    assert "dermserve_outbox_failed 0.0" in said
    (age,) = [line.split()[1] for line in said.splitlines() if line.startswith("dermserve_outbox_oldest_seconds ")]
    assert 3600 <= float(age) < 3700


def test_web_workers_load_nothing_of_dicoms_networks_or_reports(tmp_path: Path) -> None:
    heavy = "[name for name in ('highdicom', 'pynetdicom') if name in sys.modules]"
    code = f"import sys, frontend.app, frontend.commands; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_error_is_of_the_tree() -> None:
    for wrong in (Kind.WEBHOOK, Kind.C_STORE):
        with pytest.raises(DermserveError):
            check_address(wrong, "http://[::1", Networks(None))
