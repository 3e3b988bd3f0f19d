"""The DICOM node that others send to: C-ECHO, C-STORE and storage commitment (N-ACTION).

pynetdicom calls the handlers in a thread for each association; what they ask of database and model server runs in the
process's one event loop. Log lines name AE titles, addresses and codes, never an object's content.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from io import BytesIO
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from dermserve import __version__, dicom
from dermserve.errors import (
    DermserveError,
    Forbidden,
    ImageTooLarge,
    RateLimited,
    RequestInvalid,
    SopClassMismatch,
    Unavailable,
)
from dermserve.settings import Settings
from frontend.dicom import commitment, negotiation
from frontend.dicom.association import BoundedAssociation
from frontend.dicom.commitment import Commitments, Report
from frontend.dicom.reception import Reception, Run
from frontend.dicom.room import Room
from frontend.dicom.senders import Node, Senders
from frontend.dicom.server import Server

log = logging.getLogger("dermserve.dicom")

_ACSE_S: Final = 15.0  # for the request of an association, and for the goodbye
_STOP_S: Final = 18.0
_GOODBYE_S: Final = 2.0
_STOP_LOOK_S: Final = 0.02
_COMMENT: Final = 64  # characters of an error comment (0000,0902), which is an LO
_SAME_ASSOCIATION: Final = timedelta(seconds=30)  # how long a report may take there before it is sent over a new one
_NO_SUCH_ACTION: Final = 0x0123
_NO_SUCH_INSTANCE: Final = 0x0112
_INVALID_ARGUMENT: Final = 0x0115
_RESOURCE_LIMITATION: Final = 0x0213


class Rejection(NamedTuple):
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

    result: int
    source: int
    reason: int
    words: str


_CALLED: Final = Rejection(1, 1, 7, "called AE title not recognised")
_CALLING: Final = Rejection(1, 1, 3, "calling AE title not recognised, or not from this address")
_CONGESTED: Final = Rejection(2, 3, 1, "temporary congestion")
_FULL: Final = Rejection(2, 3, 2, "local limit exceeded")


class Scp:
    """The server with its handlers. `run` runs a coroutine in the process's event loop and waits for it, in any thread."""

    def __init__(
        self,
        settings: Settings,
        run: Run[Any],
        *,
        senders: Senders,
        reception: Reception,
        commitments: Commitments,
        room: Room,
    ) -> None:
        _config.STORE_RECV_CHUNKED_DATASET = False  # it would write objects onto the disk
        _config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its lines quote what a peer sent
        self._ae_title = settings.dicom_ae_title
        self._run = run
        self._senders = senders
        self._reception = reception
        self._commitments = commitments
        self._stopping = False
        ae = ApplicationEntity(settings.dicom_ae_title)
        ae.acse_timeout = _ACSE_S
        ae.implementation_version_name = f"DERMSERVE_{__version__}"[:16]
        handlers = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_ACTION, self._on_action),
        ]
        contexts = negotiation.offered(settings)
        self.server = Server(ae, settings, contexts=contexts, handlers=handlers, room=room, ended=self._on_ended)

    def start(self) -> None:
        """Accept associations."""
        self.server.start()

    def stop(self) -> None:
        """Accept no more, answer what is under way, and end the associations; blocks for as long."""
        self._stopping = True
        self.server.stop_accepting()
        deadline = time.monotonic() + _STOP_S
        while any(one.busy for one in list(self.server.associations)) and time.monotonic() < deadline:
            time.sleep(_STOP_LOOK_S)
        self.server.abort_all()
        deadline = time.monotonic() + _GOODBYE_S
        while self.server.associations and time.monotonic() < deadline:
            time.sleep(_STOP_LOOK_S)

    def _on_requested(self, event: evt.Event) -> None:
        association = _association(event)
        try:
            rejection = self._rejection(association)
        except Exception as error:  # pynetdicom would go on as if nothing had been
            if not isinstance(error, DermserveError):
                log.error("an association request failed: %s", _place(error))
            rejection = _CONGESTED
        if rejection is not None:
            log.warning("%s: association rejected: %s", _whom(association), rejection.words)
            association.acse.send_reject(*rejection[:3])
            association.kill()  # returns when the peer was told

    def _rejection(self, association: BoundedAssociation) -> Rejection | None:
        asked = association.requestor.primitive
        assert asked is not None
        if self._stopping:
            return _CONGESTED
        if (asked.called_ae_title or "").strip() != self._ae_title:
            return _CALLED
        calling, address = (asked.calling_ae_title or "").strip(), association.requestor.address
        association.node = self._run(self._senders.admit(calling, str(address)))
        if association.node is None:
            return _CALLING
        negotiation.keep_first(asked.presentation_context_definition_list)
        association.counted = self.server.slots.acquire(blocking=False)
        return None if association.counted else _FULL

    def _on_established(self, event: evt.Event) -> None:
        """A node that has no address of its own is told now what it is still owed."""
        association = _association(event)
        contexts = [one for one in association.accepted_contexts if one.abstract_syntax == commitment.SOP_CLASS]
        if contexts and association.node.report_to is None:
            for commitment_id in self._run(self._commitments.waiting(association.node)):
                context = contexts[0]
                self._tell(association, commitment_id, int(context.context_id or 0), str(context.transfer_syntax[0]))

    def _on_ended(self, association: BoundedAssociation) -> None:
        if association.tally:
            counts = ", ".join(f"{what}: {count}" for what, count in sorted(association.tally.items()))
            log.info("%s: association ended: %s", _whom(association), counts)

    def _on_store(self, event: evt.Event) -> int | Dataset:
        association = _association(event)
        request: Any = event.request
        try:
            node = self._node(association)
            if request.receipt.refusal is not None:
                raise request.receipt.refusal
            if request.AffectedSOPClassUID != event.context.abstract_syntax:
                raise SopClassMismatch("The SOP class is not that of the presentation context.")
            data = dicom.file(
                _taken(request.DataSet),
                sop_class=str(request.AffectedSOPClassUID),
                sop_instance=str(request.AffectedSOPInstanceUID),
                syntax=str(event.context.transfer_syntax),
            )
            association.tally["images stored"] += self._reception.store(node, data)
            return 0x0000
        except DermserveError as error:
            association.tally[f"objects refused as {error.code}"] += 1
            return _status(error)
        except Exception as error:  # its text may hold what the object says
            log.error("%s: C-STORE failed by an error of ours: %s", _whom(association), _place(error))
            return _status(DermserveError())

    def _node(self, association: BoundedAssociation) -> Node:
        """The association's node, if it still may send."""
        if self._stopping:
            raise Unavailable
        asked: Node = association.node
        node: Node | None = self._run(self._senders.admit(asked.ae_title, str(association.requestor.address)))
        if node is None:
            raise Forbidden
        return node

    def _on_action(self, event: evt.Event) -> tuple[int | Dataset, None]:
        association = _association(event)
        request: Any = event.request
        try:
            node = self._node(association)
            if event.action_type != commitment.REQUEST:
                return _NO_SUCH_ACTION, None
            if request.RequestedSOPInstanceUID != commitment.SOP_INSTANCE:
                return _NO_SUCH_INSTANCE, None
            if request.receipt.refusal is not None:
                raise request.receipt.refusal
            wanted = commitment.Request.of(event.action_information)
            here = node.report_to is None or commitment.SOP_CLASS in association.requestor.role_selection
            wait = _SAME_ASSOCIATION if here else timedelta()
            commitment_id = self._run(self._commitments.accept(node, wanted, wait=wait))
        except (ImageTooLarge, RateLimited, Unavailable) as error:
            return _status(error, _RESOURCE_LIMITATION), None
        except RequestInvalid as error:
            return _status(error, _INVALID_ARGUMENT), None
        except DermserveError as error:
            return _status(error), None
        except Exception as error:
            log.warning("%s: N-ACTION could not be read: %s", _whom(association), type(error).__name__)
            return _status(RequestInvalid(), _INVALID_ARGUMENT), None
        association.tally["commitments asked"] += 1
        if here:
            context_id, _, syntax = event.context
            association.after_answer.append(lambda: self._tell(association, commitment_id, context_id, str(syntax)))
        return 0x0000, None

    def _tell(self, association: BoundedAssociation, commitment_id: UUID, context_id: int, syntax: str) -> None:
        """Send a report over an open association; what is not answered stays due."""
        try:
            report: Report | None = self._run(self._commitments.report(commitment_id))
        except DermserveError:
            return
        if report is None:
            return
        message = len(association.owed) + 1
        association.owed[message] = report.commitment_id
        association.reported = lambda answer: self._on_reported(association, answer)
        primitive = N_EVENT_REPORT()
        primitive.MessageID = message
        primitive.AffectedSOPClassUID = commitment.SOP_CLASS
        primitive.AffectedSOPInstanceUID = commitment.SOP_INSTANCE
        primitive.EventTypeID = report.event_type
        implicit = syntax == "1.2.840.10008.1.2"
        primitive.EventInformation = BytesIO(encode(report.information, implicit, True) or b"")
        association.dimse.send_msg(primitive, context_id)

    def _on_reported(self, association: BoundedAssociation, answer: N_EVENT_REPORT) -> None:
        commitment_id = association.owed.get(answer.MessageIDBeingRespondedTo or 0)
        if commitment_id is not None and answer.Status == 0x0000:
            try:
                self._run(self._commitments.told(commitment_id))
            except DermserveError:
                log.warning("%s: a report that was received will be sent again", _whom(association))


def _association(event: evt.Event) -> BoundedAssociation:
    assert isinstance(event.assoc, BoundedAssociation)
    return event.assoc


def _taken(stream: BytesIO | None) -> bytes:
    """The bytes, which then are held only once."""
    if stream is None:
        return b""
    data = stream.getvalue()
    stream.truncate(0)
    return data


def _whom(association: BoundedAssociation) -> str:
    asked = association.requestor.primitive
    title = (asked.calling_ae_title or "").strip() if asked is not None else ""
    return f"{title or '-'} at {association.requestor.address}"


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return type(error).__name__ + where


def _status(error: DermserveError, status: int | None = None) -> Dataset:
    """The code is for programs; the title, unlike the detail, says nothing of the object."""
    answer = Dataset()
    answer.Status = error.dicom_status if status is None else status
    answer.ErrorComment = f"{error.code}: {error.title}"[:_COMMENT]
    return answer
