"""Work beside the caller, on a few threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Aside:
    """Runs jobs in the order in which they come; on one thread, one after the other. Safe under threads.

    For jobs that take as long as a pool takes to hand one over: a caller who has to wait for room is not woken for each
    job that ends, but when half of them have.

    Args:
        threads: jobs that run at a time; started when there is something to do.
        most: jobs that run or wait; whoever brings another one waits.
        name: of the threads.
    """

    def __init__(self, threads: int, most: int, name: str) -> None:
        self._most_threads = threads
        self._most = most
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._pending = 0
        self._waiting = 0
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, job: Callable[[], None]) -> bool:
        """Have `job` run, which does not raise; returns when it has a place, and False after `close`."""
        with self._room:
            if self._pending >= self._most:
                self._waiting += 1
                try:
                    self._room.wait_for(lambda: self._closed or self._pending < self._most)
                finally:
                    self._waiting -= 1
            if self._closed:
                return False
            self._pending += 1
            if len(self._threads) < min(self._pending, self._most_threads):
                # daemons: a process that ends must not wait for them
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._jobs.put(job)
            return True

    def close(self, *, wait: bool) -> None:
        """Let the threads end after what was submitted."""
        with self._room:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)
                self._room.notify_all()
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                del job  # what it holds must not live until the next one comes
                with self._room:
                    self._pending -= 1
                    if self._waiting and self._pending <= self._most // 2:
                        self._room.notify_all()
