"""`python -m frontend.dicom`: the DICOM door and the outbox's worker as a process, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import warnings
from collections.abc import Coroutine
from ipaddress import ip_address
from typing import Any

from dermserve.client import AsyncTritonClient
from dermserve.errors import StartupError
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from frontend.database import Database, database_url
from frontend.delivery.courier import Couriers
from frontend.delivery.worker import deliver_for_ever
from frontend.dicom.commitment import Commitments
from frontend.dicom.identifiers import Identifiers
from frontend.dicom.reception import Reception
from frontend.dicom.reporting import report_for_ever
from frontend.dicom.room import Room
from frontend.dicom.scp import Scp
from frontend.dicom.senders import Senders
from frontend.lesions import Lesions
from frontend.metrics import Metrics
from frontend.predictions import Inference, Predictions
from frontend.throttle import Throttle
from frontend.vault import Vault

log = logging.getLogger("dermserve.dicom")


async def serve(settings: Settings, inference: Inference, stopped: asyncio.Event) -> None:
    """Take objects until `stopped`, then finish what is under way.

    Raises:
        StartupError: no model card, no database address, or an address or certificate that cannot be used.
    """
    loop = asyncio.get_running_loop()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    card = ModelCard.read(settings.model_repository)
    vault, metrics = Vault.of(settings), Metrics()
    couriers = Couriers(settings, vault)
    database = Database(database_url(settings))
    predictions = Predictions(
        database,
        inference,
        card,
        operating_point=settings.operating_point,
        metrics=metrics,
        lesions=Lesions(database),
    )
    throttle = Throttle(database, images=settings.rate_limit, registrations=settings.registration_limit)
    commitments = Commitments(database)
    identifiers = Identifiers(vault)
    reception = Reception(run, database, predictions=predictions, throttle=throttle, identifiers=identifiers)
    senders = Senders(database, open_to_this_machine=_is_loopback(settings.dicom_host))
    try:
        scp = Scp(settings, run, senders=senders, reception=reception, commitments=commitments, room=Room())
    except OSError as error:
        where = f"{settings.dicom_host}:{settings.dicom_port}"
        raise StartupError(f"The DICOM door cannot listen on {where}: {error.strerror}.") from error
    scp.start()
    log.info("listening as %s on %s:%d", settings.dicom_ae_title, settings.dicom_host, settings.dicom_port)
    work = [
        asyncio.create_task(report_for_ever(commitments, settings)),
        asyncio.create_task(deliver_for_ever(couriers, database, metrics)),
    ]
    try:
        await stopped.wait()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await asyncio.to_thread(scp.stop)
        await predictions.close()
        await inference.close()
        await database.close()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _main(settings: Settings) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    inference = AsyncTritonClient(settings.triton_urls, timeout_s=settings.inference_timeout_s)
    await serve(settings, inference, stopped)


def main() -> int:
    """Exit status 0 after a stop that was asked for."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes values, here and in its warnings
    warnings.simplefilter("ignore")
    try:
        asyncio.run(_main(Settings()))
    except StartupError as error:
        log.error("%s", error.detail)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
