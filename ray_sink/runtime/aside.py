"""Work beside the producer, one piece after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Aside:
    """Runs jobs in their order on a thread of its own, which starts with the first one.

    Args:
        most: jobs that may wait or run; whoever brings another one waits.
        name: of the thread.
    """

    def __init__(self, most: int, name: str) -> None:
        self._name = name
        self._room = threading.BoundedSemaphore(most)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Have `job` run, which does not raise; returns when it has a place."""
        self._room.acquire()
        with self._starting:
            if self._thread is None:
                # a daemon: a process that ends must not wait for it
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Let the thread end after what was submitted."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                del job  # what it holds must not live until the next one comes
                self._room.release()
