"""pynetdicom's associations within bounds: of bytes, of time, of their number, and of the processor's time.

By itself pynetdicom (3.0) believes a PDU's length of up to 4 GiB, waits for the rest of a PDU for good, collects an object
of any size, reads objects ahead while one is being worked on, does the TLS handshake in the thread that accepts, and
rejects all of many associations that come at once although some would fit. Its two threads of an association look for
work a thousand times a second. What is private there (`_…`) is used here and nowhere else; tests hold it against the version.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, cast
from uuid import UUID

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from frontend.dicom.room import MAX_LIST_BYTES, MAX_OBJECT_BYTES, Receipt, Room

MAX_PDU: Final = 128 * 1024  # bytes; the most that DCMTK sends
IDLE_S: Final = 60.0
"""Seconds an association may say nothing while it waits for no answer of ours."""
_PDU_S: Final = 60.0
_OBJECT_S: Final = 300.0
_MAX_COMMAND: Final = 16 * 1024
_LOOK_S: Final = 0.25  # how long a thread waits at most before it looks at its timers
_C_STORE: Final = 0x0001


class _Bell:
    """Wakes a thread that waits for a socket."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.descriptor, 1)

    def silence(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.eventfd_read(self.descriptor)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)


class _Queue(queue.Queue[Any]):
    """Rings when something was put in."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class _ForUser(_Queue):
    """What the connection's thread has for the association's: nothing more, once it has ended."""

    def __init__(self, ring: Callable[[], None], ended: Callable[[], bool]) -> None:
        super().__init__(ring)
        self._ended = ended

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        until = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while block and not self._ended() and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                return super().get(timeout=max(0.0, min(_LOOK_S, until - time.monotonic())))
        return super().get(block=False)


class _Checkpoint(threading.Event):
    """Where pynetdicom's reactor passes each time it looks for work: here it waits until there may be some."""

    def __init__(self, waiting: Callable[[], bool]) -> None:
        super().__init__()
        self._waiting = waiting
        self.work = threading.Event()
        super().set()

    def set(self) -> None:
        super().set()
        self.work.set()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._waiting():
            self.work.wait(_LOOK_S)
        self.work.clear()
        return super().wait(timeout)


class _Socket(AssociationSocket):
    """Reads what was agreed on, in the time that it takes, and only while there is somebody to work on it."""

    bell: _Bell

    def recv(self, nr_bytes: int) -> bytearray:
        """One part of a PDU.

        Raises:
            OSError: it is longer than the peer was told it may be, or does not come; the connection ends.
        """
        if nr_bytes > MAX_PDU:
            raise OSError("A PDU is longer than agreed.")
        deadline = time.monotonic() + _PDU_S
        received = bytearray(nr_bytes)
        place = memoryview(received)
        while place:
            size = cast(socket.socket, self.socket).recv_into(place)
            if size == 0 or time.monotonic() > deadline:
                return received[: nr_bytes - len(place)]
            place = place[size:]
        return received

    @property
    def ready(self) -> bool:
        """Whether a PDU has begun to come; waits a little for one, or for something of ours to send."""
        own = self.socket
        if own is None or not self._is_connected:
            return False
        busy = cast("BoundedAssociation", self.assoc).messages.qsize() > 0
        if not busy and isinstance(own, ssl.SSLSocket) and own.pending():
            return True
        waiting: list[Any] = [self.bell.descriptor] if busy else [own, self.bell.descriptor]
        try:
            found, _, _ = select.select(waiting, [], [], _LOOK_S)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed
            return False
        self.bell.silence()
        return own in found


class _Dimse(DIMSEServiceProvider):
    """Counts an object's bytes while they come and drops them once there are too many; the sender is still answered."""

    def __init__(self, association: BoundedAssociation, room: Room) -> None:
        super().__init__(association)
        self._room = room
        self._receipt = Receipt(room)
        self._command = 0
        self._until = float("inf")
        self._receipts: set[Receipt] = set()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take what a PDU brought; what is no message ends the association, not its thread."""
        try:
            values: list[Any] = [
                [context, self._counted(one)] for context, one in primitive.presentation_data_value_list
            ]
            primitive.presentation_data_value_list = values
            super().receive_primitive(primitive)
            if self.message is None and self._command:  # complete, and not one that is queued
                self.take_receipt().release()
        except Exception:  # what a stranger's bytes make pynetdicom raise has no tree
            cast(BoundedAssociation, self.assoc).tally["messages not understood"] += 1
            self.dul.event_queue.put("Evt19")  # invalid PDU

    def _counted(self, value: bytes) -> bytes:
        size = len(value) - 1
        if self._command == 0:
            self._until = time.monotonic() + _OBJECT_S
        if time.monotonic() > self._until:
            raise TimeoutError("An object took too long.")
        if value[0] & 1:
            self._command += size
            if self._command > _MAX_COMMAND:
                raise ValueError("A command is longer than any.")
            return value
        command = self.message.command_set if self.message is not None else None
        is_object = command is not None and command.get("CommandField") == _C_STORE
        return value if self._receipt.add(size, MAX_OBJECT_BYTES if is_object else MAX_LIST_BYTES) else value[:1]

    def take_receipt(self) -> Receipt:
        """That of the message that has just become complete."""
        receipt, self._receipt, self._command = self._receipt, Receipt(self._room), 0
        self._receipts.add(receipt)
        return receipt

    def done(self, receipt: Receipt) -> None:
        """Give back what a message held."""
        receipt.release()
        self._receipts.discard(receipt)

    def release(self) -> None:
        """Give back all that the association holds."""
        for receipt in (*self._receipts, self._receipt):
            receipt.release()


class _Messages(_Queue):
    """Complete messages; each bears its receipt."""

    def __init__(self, ring: Callable[[], None], dimse: _Dimse) -> None:
        super().__init__(ring)
        self._dimse = dimse

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item[1] is not None:
            item[1].receipt = self._dimse.take_receipt()
        super().put(item, block, timeout)


class BoundedAssociation(Association):
    """One association of the server.

    `node` is who it is with, once admitted; `counted`: it takes one of the server's slots; `busy`: a request is under way.
    What is in `after_answer` is called, by the association's thread, once the request under way was answered.
    `owed` holds commitments by the message that reports them, and `reported` gets the peer's answers. `tally` counts
    objects by what became of them.
    """

    def __init__(self, ae: ApplicationEntity, room: Room) -> None:
        super().__init__(ae, "acceptor")
        self.bell = _Bell()
        self.node: Any = None
        self.reported: Callable[[N_EVENT_REPORT], None] | None = None
        self.owed: dict[int, UUID] = {}
        self.after_answer: list[Callable[[], None]] = []
        self.counted = False
        self.busy = False
        self.tally: Counter[str] = Counter()
        checkpoint = _Checkpoint(lambda: not self.messages.empty())
        dimse = _Dimse(self, room)
        self.messages = _Messages(checkpoint.work.set, dimse)
        dimse.msg_queue = self.messages
        self.dimse = dimse
        self._reactor_checkpoint = checkpoint
        self.dul.daemon = True
        self.dul.to_user_queue = _ForUser(checkpoint.work.set, lambda: self.dul._kill_thread)
        self.dul.to_provider_queue = _Queue(self.bell.ring)
        self.dul._run_loop_delay = 0.0002
        self.network_timeout = IDLE_S

    def _serve_request(self, msg: Any, context_id: int) -> None:
        self.bell.ring()  # the queue has room again: the next message may be read
        receipt = getattr(msg, "receipt", None)
        self.busy = True
        try:
            if isinstance(msg, N_EVENT_REPORT) and msg.is_valid_response:
                if self.reported is not None:
                    self.reported(msg)
                return
            super()._serve_request(msg, context_id)
            while self.after_answer and self.is_established:
                self.after_answer.pop(0)()
        finally:
            self.busy = False
            if receipt is not None:
                cast(_Dimse, self.dimse).done(receipt)
            self.dul._idle_timer.restart()  # our work was not the peer's silence

    def adopt(self, client: socket.socket) -> None:
        """Use an accepted connection."""
        client.settimeout(IDLE_S)
        bounded = _Socket(self, client_socket=client)
        bounded.bell = self.bell
        self.set_socket(bounded)

    def close(self) -> None:
        """End what still runs and give back what is held."""
        if self.dul.is_alive():
            self.abort()
            self.dul.join(_LOOK_S * 4)
        cast(_Dimse, self.dimse).release()
        self.bell.close()
