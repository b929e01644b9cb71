"""Which writer a producer's next batch goes to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from ray_sink.runtime.messages import WriterInfo

_LOOK_S = 5.0


class Route:
    """The writers that serve one producer. Safe under several threads.

    Args:
        node: id of the producer's node.
        ask: the writers for producers there, as soon as there are any; takes the name of one that is dead or has left.
        clock: seconds, monotonic.

    Raises:
        SinkError: what `ask` raises.
    """

    def __init__(
        self, node: str, ask: Callable[[str | None], list[WriterInfo]], clock: Callable[[], float] = monotonic
    ) -> None:
        self._node = node
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._load: dict[str, int] = {}
        self._asked_s = clock()
        self._writers = ask(None)

    def take(self, n_bytes: int) -> WriterInfo | None:
        """The one with the least to do, which has `n_bytes` more from now on; None: all have left, see `renew`."""
        with self._lock:
            if not self._writers:
                return None
            writer = min(self._writers, key=lambda info: self._load.get(info.name, 0))
            self._load[writer.name] = self._load.get(writer.name, 0) + n_bytes
            return writer

    def replied(self, name: str, n_bytes: int, *, leaving: bool = False) -> None:
        """A writer is done with so much; it gets nothing more if it is leaving."""
        with self._lock:
            self._load[name] -= n_bytes
            if leaving:
                self._writers = [writer for writer in self._writers if writer.name != name]

    def renew(self, gone: str) -> None:
        """Wait for others than one that is dead or has left.

        Raises:
            SinkError: why there are none.
        """
        self._set(self._ask(gone))

    def look_home(self) -> None:
        """Where others' writers serve us, ask now and then whether our node has its own by now.

        Raises:
            SinkError: it is not known.
        """
        now_s = self._clock()
        with self._lock:
            at_home = all(writer.node == self._node for writer in self._writers)
        if not at_home and now_s >= self._asked_s + _LOOK_S:
            self._asked_s = now_s
            self._set(self._ask(None))

    def _set(self, writers: list[WriterInfo]) -> None:
        with self._lock:
            self._writers = writers
            self._asked_s = self._clock()
