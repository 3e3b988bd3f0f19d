"""Accepts connections for associations: so many at once, and TLS where it is set."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable
from copy import deepcopy
from socketserver import TCPServer
from typing import Any, Final

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, RequestHandler, ThreadedAssociationServer

from dermserve.errors import StartupError
from dermserve.settings import Settings
from frontend.dicom.association import MAX_PDU, BoundedAssociation
from frontend.dicom.room import Room

log = logging.getLogger("dermserve.dicom")

_HANDSHAKE_S: Final = 10.0
_WAITING: Final = 64  # connections beyond the associations, so that they can be told why they are rejected


class _Handler(RequestHandler):
    """Runs an association in the thread of its connection."""

    server: Server

    def handle(self) -> None:
        association = self._bounded()
        self.server.associations.add(association)
        try:
            evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
            association.run()
        finally:
            association.close()
            self.server.associations.discard(association)
            if association.counted:
                self.server.slots.release()
            self.server.ended(association)

    def _bounded(self) -> BoundedAssociation:
        """As pynetdicom makes an association, within our bounds."""
        association = BoundedAssociation(self.ae, self.server.room)
        association._server = self.server
        association.adopt(self.request)
        acceptor = association.acceptor
        acceptor.maximum_length = MAX_PDU
        acceptor.ae_title = self.server.ae_title
        acceptor.address_info = self.local
        acceptor.implementation_class_uid = self.ae.implementation_class_uid
        acceptor.implementation_version_name = self.ae.implementation_version_name
        acceptor.supported_contexts = deepcopy(self.server.contexts)
        association.requestor.address_info = self.remote
        for event, bound in self.server._handlers.items():
            each: Any = [bound] if event.is_intervention else bound  # one handler, or a list of them
            for handler, arguments in each:
                association.bind(event, handler, arguments)
        return association


class Server(ThreadedAssociationServer):
    """Listens from its creation on; `start` accepts. `slots` are the associations that may be open; `ended` is told of each."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self,
        ae: ApplicationEntity,
        settings: Settings,
        *,
        contexts: list[PresentationContext],
        handlers: list[Any],
        room: Room,
        ended: Callable[[BoundedAssociation], None],
    ) -> None:
        self._tls = tls_context(settings)
        self.room = room
        self.ended = ended
        self.slots = threading.BoundedSemaphore(settings.dicom_associations)
        self.associations: set[BoundedAssociation] = set()
        self._connections = threading.BoundedSemaphore(settings.dicom_associations + _WAITING)
        address = AddressInformation(settings.dicom_host, settings.dicom_port).as_tuple
        super().__init__(
            ae, address, settings.dicom_ae_title, contexts, evt_handlers=handlers, request_handler=_Handler
        )
        self._thread = threading.Thread(target=self.serve_forever, name="dicom-accept", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread of its own, or end it where there are too many."""
        if not self._connections.acquire(blocking=False):
            log.warning("%s: connection refused, too many are open", client_address[0])
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Do the handshake here, where a peer that is slow at it holds up nobody."""
        connection = request
        try:
            if self._tls is not None:
                request.settimeout(_HANDSHAKE_S)
                connection = self._tls.wrap_socket(request, server_side=True)
            self.finish_request(connection, client_address)
        except (ssl.SSLError, OSError) as error:
            # A library's own words about a handshake name no patient; of other errors only the kind is told.
            reason = getattr(error, "reason", None) or type(error).__name__
            log.warning("%s: connection refused or lost: %s", client_address[0], reason)
        except Exception as error:
            log.error("%s: the association ended by an error of ours: %s", client_address[0], type(error).__name__)
        finally:
            with contextlib.suppress(OSError):
                self.shutdown_request(connection)
            self._connections.release()

    def stop_accepting(self) -> None:
        if self._thread.is_alive():
            TCPServer.shutdown(self)
        self.server_close()

    def abort_all(self) -> None:
        """End the associations that are still open."""
        for association in list(self.associations):
            association.abort(block=False)


def tls_context(settings: Settings, *, client: bool = False) -> ssl.SSLContext | None:
    """TLS 1.2 or later with the certificate of the settings, for either side; None where they name none.

    Raises:
        StartupError: the files cannot be read, or a key or an authority is named without a certificate.
    """
    certificate, authority = settings.dicom_tls_certificate, settings.dicom_tls_client_ca
    if certificate is None:
        if settings.dicom_tls_key or authority:
            raise StartupError("DERMSERVE_DICOM_TLS_KEY and …_CLIENT_CA need DERMSERVE_DICOM_TLS_CERTIFICATE.")
        return None
    try:
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH if client else ssl.Purpose.CLIENT_AUTH, cafile=authority
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, settings.dicom_tls_key)
        if authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"The certificates of the DICOM door cannot be used: {error}.") from error
    return context
