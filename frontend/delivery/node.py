"""Reports to a DICOM node by C-STORE (PS3.4 annex B), with TLS where its address says so."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final
from urllib.parse import unquote, urlsplit

from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from frontend.delivery.outcomes import RefusedError, TryLaterError, check_status
from frontend.dicom.outgoing import settle
from frontend.networks import Networks, Refused

_CONNECT_S: Final = 10.0
_ASSOCIATE_S: Final = 20.0
_ANSWER_S: Final = 50.0
_IDLE_S: Final = 4.0
LONGEST_S: Final = 2 * _CONNECT_S + _ASSOCIATE_S + 2 * _ANSWER_S
"""One attempt: a name, an association that does not answer any more, a connection, an association, an answer."""


class Node:
    """One destination. Its threads are its own, so that a node that hangs keeps nobody else's.

    An association stays open for a moment after a report: while a stream of images comes in, the next is not far.
    """

    def __init__(self, networks: Networks, trust: ssl.SSLContext, *, ae_title: str, at_once: int) -> None:
        self._networks = networks
        self._trust = trust
        self._ae_title = ae_title
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="c-store")
        # Methods of both are atomic: threads share them without a lock.
        self._idle: deque[tuple[float, Association]] = deque()
        self._busy: set[Association] = set()

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        for association in list(self._busy):  # else the process would wait for a node that hangs
            await loop.run_in_executor(None, association.abort)
            association.dimse.msg_queue.put((None, None))  # as pynetdicom tells who waits that no answer comes
        await loop.run_in_executor(None, self._release, float("inf"))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def store(self, url: str, report: Dataset) -> None:
        """Store a report at `dicom://AE_TITLE@host:port`.

        Raises:
            TryLaterError, RefusedError: it did not arrive.
        """
        asked = urlsplit(url)
        host, port = asked.hostname or "", asked.port or 104
        try:
            async with asyncio.timeout(_CONNECT_S):
                address = await self._networks.resolve(host, port)
        except Refused as error:
            raise TryLaterError("its address lies in a network that nothing is sent to") from error
        except OSError as error:  # a TimeoutError is one, too
            raise TryLaterError("its name has no address") from error
        tls = (self._trust, host) if asked.scheme == "dicom+tls" else None
        title = unquote(asked.username or "")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._store, address, port, title, tls, report)
        finally:
            loop.call_later(_IDLE_S, self._forget, loop)

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._idle:
            loop.run_in_executor(None, self._release, time.monotonic() - _IDLE_S / 2)

    def _release(self, unused_since: float) -> None:
        while True:
            try:
                since, association = self._idle.popleft()
            except IndexError:
                return
            if since > unused_since:
                self._idle.appendleft((since, association))
                return
            settle(association)
            association.release()

    def _store(
        self, address: str, port: int, title: str, tls: tuple[ssl.SSLContext, str] | None, report: Dataset
    ) -> None:
        association = self._waiting()
        if association is not None:
            status = self._send(association, report)
            if status is not None:
                self._keep(association)
                check_status(status, "C-STORE status")
                return
            # The node closes it just now, or had forgotten it: that says nothing about whether it takes the report.
        association = self._associate(address, port, title, tls)
        status = self._send(association, report)
        if status is None:
            raise TryLaterError("no answer to C-STORE")
        self._keep(association)
        check_status(status, "C-STORE status")

    def _waiting(self) -> Association | None:
        while self._idle:
            with suppress(IndexError):  # another thread was quicker
                _, association = self._idle.pop()
                if association.is_established:
                    return association
        return None

    def _keep(self, association: Association) -> None:
        self._idle.append((time.monotonic(), association))

    def _associate(self, address: str, port: int, title: str, tls: tuple[ssl.SSLContext, str] | None) -> Association:
        entity = AE(ae_title=self._ae_title)
        entity.connection_timeout, entity.acse_timeout = _CONNECT_S, _ASSOCIATE_S
        entity.dimse_timeout = entity.network_timeout = _ANSWER_S
        entity.add_requested_context(ComprehensiveSRStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        association = entity.associate(address, port, ae_title=title, tls_args=tls)
        if association.is_established:
            return association
        if association.is_rejected:  # also where it does not know us yet: somebody is about to set it up
            raise TryLaterError("the association was rejected")
        if association.rejected_contexts:
            raise RefusedError("it takes no Comprehensive SR")
        raise TryLaterError("no association")

    def _send(self, association: Association, report: Dataset) -> int | None:
        """The status of the answer; None where none came, and the association is of no use any more."""
        settle(association)
        self._busy.add(association)
        try:
            answer = association.send_c_store(report)
        except RuntimeError:  # pynetdicom's word for an association that ended meanwhile
            return None
        finally:
            self._busy.discard(association)
        if "Status" not in answer:
            association.abort()
            return None
        return int(answer.Status)
