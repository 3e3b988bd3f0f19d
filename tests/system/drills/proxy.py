"""A wire that can be held up: a TCP or Unix proxy that stops passing bytes on while told so, and closes nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

Address = tuple[str, int] | Path


class Proxy:
    """Listens on `listen` and passes on to `target`, both ways, from `start` to `stop`."""

    def __init__(self, listen: Address, target: Address) -> None:
        self._target = target
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = _socket(listen)
        self._listener.bind(str(listen) if isinstance(listen, Path) else listen)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Hold everything that is under way; new connections are accepted and hear nothing."""
        self._flowing.clear()

    def flow(self) -> None:
        """Go on."""
        self._flowing.set()

    def stop(self) -> None:
        """Take no further connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                incoming, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(incoming,), daemon=True).start()

    def _join(self, incoming: socket.socket) -> None:
        self._flowing.wait()
        outgoing = _socket(self._target)
        try:
            outgoing.connect(str(self._target) if isinstance(self._target, Path) else self._target)
        except OSError:
            incoming.close()
            return
        for source, sink in ((incoming, outgoing), (outgoing, incoming)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _socket(address: Address) -> socket.socket:
    return socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET)
