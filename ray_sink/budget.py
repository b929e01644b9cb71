"""A number of bytes that threads share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Holds threads back while together they would use more than `limit_bytes`.

    First come, first served, so that a large request is not overtaken for ever. A request above the whole budget waits
    until nothing else is in use, and then goes alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """What is in use now."""
        with self._changed:
            return self._used

    @contextmanager
    def take(self, count_bytes: int) -> Iterator[None]:
        """Wait for `count_bytes`, and give them back at the end of the block."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._fits(count_bytes))
                self._used += count_bytes
            finally:
                # whoever gives up, by an interrupt, must not block those behind
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= count_bytes
                self._changed.notify_all()

    def _fits(self, count_bytes: int) -> bool:
        return self._used == 0 or self._used + count_bytes <= self.limit_bytes
