"""A worker as a process of its own, to be killed: `python -m tests.frontend.outbox_worker`, set up by the environment."""

from __future__ import annotations

import asyncio

from dermserve.settings import Settings
from frontend.database import Database, database_url
from frontend.delivery.courier import Couriers
from frontend.delivery.worker import deliver_for_ever
from frontend.metrics import Metrics
from frontend.vault import Vault


async def main() -> None:
    settings = Settings()
    database = Database(database_url(settings))
    await deliver_for_ever(Couriers(settings, Vault.of(settings)), database, Metrics(), poll_s=0.02)


if __name__ == "__main__":
    asyncio.run(main())
