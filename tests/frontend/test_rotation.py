"""The server's key is replaced for everything that is sealed with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from dermserve.dicom.identity import Patient
from dermserve.settings import Settings
from frontend import destinations
from frontend.dicom.identifiers import Identifiers
from frontend.outbox import Kind
from frontend.rotation import reseal
from frontend.vault import Vault
from tests.frontend.conftest import Cluster
from tests.frontend.sending import hospital, origin

OLD, NEW = "o" * 32, "n" * 32
PATIENT = Patient(id="MRN-4711", name="Roe^Jane", birth_date="", sex="")


def test_destinations_and_patients_open_with_the_new_key_alone(cluster: Cluster, tmp_path: Path) -> None:
    settings = Settings(database_url=cluster.create(), state_dir=tmp_path, secret_key=SecretStr(OLD))

    async def scenario() -> None:
        async with hospital(settings) as here:
            _, secret = await here.add(Kind.WEBHOOK, "https://clinic.example/results")
            organisation = (await here.fetch("SELECT id FROM organisations"))[0].id
            kept = Identifiers(here.vault).kept(PATIENT, study_uid="2.25.1", organisation=organisation, as_it_came=True)
            await here.result(replace(origin(), patient=kept))
            assert await reseal(here.database, Vault(NEW)) == (0, 2), "the old key is missing"
            assert await reseal(here.database, Vault(NEW, OLD)) == (2, 0)
            assert await reseal(here.database, Vault(NEW)) == (0, 0)
            [sealed] = await here.fetch("SELECT secret FROM destinations")
            assert Vault(NEW).open(sealed.secret, destinations.PURPOSE) == (secret or "").encode()
            [row] = await here.fetch("SELECT patient FROM instances")
            assert Identifiers(Vault(NEW)).read(row.patient) == PATIENT

    asyncio.run(scenario())
