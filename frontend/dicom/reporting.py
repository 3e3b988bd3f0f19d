"""Tells nodes what is stored over associations of our own, again and again until they have heard it or a day has passed."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import build_context

from dermserve.errors import DermserveError
from dermserve.settings import Settings
from frontend.dicom import commitment
from frontend.dicom.commitment import Commitments, Due, Report
from frontend.dicom.outgoing import settle
from frontend.dicom.server import tls_context

log = logging.getLogger("dermserve.dicom")

_LOOK_S: Final = 1.0
_CONNECT_S: Final = 5.0  # short enough for a stop that waits for all of it
_ANSWER_S: Final = 10.0


async def report_for_ever(commitments: Commitments, settings: Settings) -> None:
    """Send what is due, until cancelled."""
    while True:
        try:
            for ae_title, asked_at in await commitments.give_up():
                log.warning("%s asked at %s what is stored and could not be told", ae_title, asked_at.isoformat())
            await asyncio.gather(*(_report(commitments, settings, due) for due in await commitments.due()))
        except DermserveError as error:
            log.warning("reports of storage commitment wait: %s", error.code)
        except Exception as error:  # the next round tries again
            log.error("reports of storage commitment wait for an error of ours: %s", type(error).__name__)
        await asyncio.sleep(_LOOK_S)


async def _report(commitments: Commitments, settings: Settings, due: Due) -> None:
    report = await commitments.report(due.commitment_id)
    if report is None:
        return
    if await asyncio.to_thread(_sent, settings, due, report):
        await commitments.told(due.commitment_id)
    else:
        log.warning("%s at %s:%d could not be told what is stored; it will be tried again", due.ae_title, *due.address)


def _sent(settings: Settings, due: Due, report: Report) -> bool:
    """Whether the node answered that it has heard."""
    host, port = due.address
    ae = ApplicationEntity(settings.dicom_ae_title)
    ae.connection_timeout = ae.acse_timeout = _CONNECT_S
    ae.dimse_timeout = ae.network_timeout = _ANSWER_S
    role = SCP_SCU_RoleSelectionNegotiation()  # we open the association, and yet we are the service's provider
    role.sop_class_uid = commitment.SOP_CLASS
    role.scu_role, role.scp_role = False, True
    tls = tls_context(settings, client=True)
    try:
        association = ae.associate(
            host,
            port,
            contexts=[build_context(commitment.SOP_CLASS)],
            ae_title=due.ae_title,
            ext_neg=[role],
            tls_args=(tls, host) if tls is not None else None,
        )
    except OSError:  # no such host
        return False
    if not association.is_established:
        return False
    try:
        status, _ = association.send_n_event_report(
            report.information, report.event_type, commitment.SOP_CLASS, commitment.SOP_INSTANCE
        )
        return bool(status.get("Status", -1) == 0x0000)
    except (ValueError, RuntimeError):  # it does not take the service, or went away meanwhile
        return False
    finally:
        settle(association)
        association.release()
