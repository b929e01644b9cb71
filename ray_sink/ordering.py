"""Jobs that share a path run in the order in which they came; no thread waits for that inside a pool."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable


class Turn:
    """A job's place in the queues of its paths.

    Attributes:
        ready: set when every job before it is done.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = tuple(paths)
        self.ready = threading.Event()
        self.ahead = 0


class PathOrder:
    """A queue for each path that has jobs. A job is in the queues of all its paths from the same moment on.

    So of any two jobs that share paths one is ahead on all of them, and the order has no cycles. A job is handed to a
    thread only when it is ready: however few threads there are, none of them waits for another's job.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Turn]] = {}
        self._lock = threading.Lock()

    def enter(self, turn: Turn) -> bool:
        """Take the next place; returns whether the job can go at once."""
        with self._lock:
            for path in turn.paths:
                queue = self._queues.setdefault(path, deque())
                turn.ahead += bool(queue)
                queue.append(turn)
            if turn.ahead == 0:
                turn.ready.set()
            return turn.ahead == 0

    def leave(self, turn: Turn) -> list[Turn]:
        """Give up the place of a job that is done, or that gave up waiting; returns those that can go now."""
        free = []
        with self._lock:
            for path in turn.paths:
                queue = self._queues[path]
                if queue[0] is not turn:
                    queue.remove(turn)
                    continue
                queue.popleft()
                if not queue:
                    del self._queues[path]
                    continue
                following = queue[0]
                following.ahead -= 1
                if following.ahead == 0:
                    following.ready.set()
                    free.append(following)
        return free
