"""A producer's own share of the limits: taken without a round trip while there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Lease:
    """Bytes of object store and a number of outputs that one producer may have under way.

    Args:
        max_outputs: outputs accepted and not acknowledged; a larger batch goes alone.
        acquire: asks the coordinator for more: bytes held, bytes granted so far, bytes needed → bytes granted, 0 to
            ask again. Called by one thread at a time.
    """

    def __init__(self, max_outputs: int, acquire: Callable[[int, int, int], int]) -> None:
        self._max_outputs = max_outputs
        self._acquire = acquire
        self._changed = threading.Condition()
        self._held_bytes = 0
        self._used_bytes = 0
        self._granted_bytes = 0
        self._outputs = 0
        self._asking = False

    def take(self, outputs: int, n_bytes: int) -> None:
        """Wait until `outputs` outputs of `n_bytes` together may go."""
        self.take_outputs(outputs)
        try:
            self.take_bytes(n_bytes)
        except BaseException:
            self.free_outputs(outputs)
            raise

    def take_outputs(self, outputs: int) -> None:
        """Wait until `outputs` more may be accepted."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outputs or self._outputs + outputs <= self._max_outputs)
            self._outputs += outputs

    def take_bytes(self, n_bytes: int) -> None:
        """Wait until `n_bytes` more may go into the object store."""
        with self._changed:
            while self._used_bytes + n_bytes > self._held_bytes:
                if self._asking:
                    self._changed.wait()
                else:
                    self._ask(n_bytes)
            self._used_bytes += n_bytes

    def _ask(self, need_bytes: int) -> None:
        # what lies idle is given up first: an item above the whole budget goes when nothing is held
        self._asking = True
        self._held_bytes = held = self._used_bytes
        so_far = self._granted_bytes
        self._changed.release()
        granted = 0
        try:
            granted = self._acquire(held, so_far, need_bytes)
        finally:
            self._changed.acquire()
            self._held_bytes += granted
            self._granted_bytes += granted
            self._asking = False
            self._changed.notify_all()

    def free_bytes(self, n_bytes: int) -> None:
        """Bytes of a batch whose payload is needed no more."""
        with self._changed:
            self._used_bytes -= n_bytes
            self._changed.notify_all()

    def free_outputs(self, outputs: int) -> None:
        """Outputs that are acknowledged, or failed."""
        with self._changed:
            self._outputs -= outputs
            self._changed.notify_all()

    def trim(self) -> tuple[int, int]:
        """Let go of what is not in use: bytes still held, and all bytes granted so far."""
        with self._changed:
            self._held_bytes = self._used_bytes
            return self._held_bytes, self._granted_bytes

    @property
    def outputs(self) -> int:
        """Outputs under way."""
        with self._changed:
            return self._outputs

    def wait_idle(self, timeout_s: float | None = None) -> None:
        """Wait until no output is under way, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outputs, timeout_s)
