"""How much of objects this process holds at once, over all associations; counted while the bytes come."""

from __future__ import annotations

import threading
from typing import Final

from dermserve.errors import ImageTooLarge, Overloaded

MAX_OBJECT_BYTES: Final = 64 * 1024 * 1024
"""Bytes of one object's data set; a single image must be one that `dermserve.image` accepts besides."""

MAX_LIST_BYTES: Final = 4 * 1024 * 1024
"""Bytes of any other data set, such as the list of a storage commitment."""


class Room:
    """Bytes and objects; safe for threads. What does not fit is refused with `Overloaded`, which a sender repeats."""

    def __init__(self, *, max_bytes: int = 256 * 1024 * 1024, max_objects: int = 64) -> None:
        self._max_bytes = max_bytes
        self._max_objects = max_objects
        self._lock = threading.Lock()
        self._bytes = 0
        self._objects = 0

    def take(self, size: int, objects: int) -> None:
        """Count bytes and objects as held.

        Raises:
            Overloaded: there is no room for them; nothing was counted.
        """
        with self._lock:
            if self._bytes + size > self._max_bytes or self._objects + objects > self._max_objects:
                raise Overloaded
            self._bytes += size
            self._objects += objects

    def give_back(self, size: int, objects: int) -> None:
        with self._lock:
            self._bytes -= size
            self._objects -= objects

    @property
    def held(self) -> tuple[int, int]:
        """Bytes and objects."""
        with self._lock:
            return self._bytes, self._objects


class Receipt:
    """One object on its way in. Once `refusal` is set, what else comes of it is dropped, and it is answered with that."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._size = 0
        self._counted = False
        self.refusal: Overloaded | ImageTooLarge | None = None

    def add(self, size: int, limit: int) -> bool:
        """Count bytes that came, `limit` at most altogether; False where they are to be dropped."""
        if self.refusal is not None:
            return False
        try:
            if self._size + size > limit:
                raise ImageTooLarge(f"The object is larger than {limit:,} bytes.")
            # Twice: what was received, and the file that is made of it.
            self._room.take(2 * size, 0 if self._counted else 1)
        except (Overloaded, ImageTooLarge) as refusal:
            self.release()
            self.refusal = refusal
            return False
        self._size += size
        self._counted = True
        return True

    def release(self) -> None:
        """Give back what is held; more than once does no harm."""
        if self._counted:
            self._room.give_back(2 * self._size, 1)
        self._size, self._counted = 0, False
