"""Published outputs on their way to the uploaders. In memory only: each life of the ledger finds out what is left."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Set

from ray_sink.records import UploadTask


class Uploads:
    """Keys that wait for an uploader, or are with one. Keys are shared out among uploaders by hash.

    Args:
        uploaders: how many there are.
        task_of: what an uploader is told about a key.
    """

    def __init__(self, uploaders: int, task_of: Callable[[str], UploadTask]) -> None:
        self._task_of = task_of
        self._waiting: list[deque[str]] = [deque() for _ in range(uploaders)]
        self._busy: list[set[str]] = [set() for _ in range(uploaders)]

    def uploader_of(self, key: str) -> int:
        """The index of the uploader that has `key`."""
        return zlib.crc32(key.encode()) % len(self._waiting)

    def add(self, key: str) -> None:
        """`key` is published."""
        self._waiting[self.uploader_of(key)].append(key)

    def take(self, uploader: int, holding: Set[str], max_outputs: int, max_bytes: int) -> list[UploadTask]:
        """See `ray_sink.ledger.Ledger.take_uploads`."""
        waiting, busy = self._waiting[uploader], self._busy[uploader]
        waiting.extendleft(sorted(busy - holding))
        busy &= holding
        tasks: list[UploadTask] = []
        size = 0
        while waiting and len(tasks) < max_outputs:
            task = self._task_of(waiting[0])
            size += task.bytes
            if tasks and size > max_bytes:
                break
            busy.add(waiting.popleft())
            tasks.append(task)
        return tasks

    def done(self, key: str) -> None:
        """An uploader has said how `key` ended."""
        self._busy[self.uploader_of(key)].discard(key)

    def has(self, uploader: int, holding: Set[str]) -> bool:
        """Whether `take` has something for this uploader."""
        return bool(self._waiting[uploader] or self._busy[uploader] - holding)

    @property
    def unfinished(self) -> bool:
        """Whether any output waits or is with an uploader."""
        return any(self._waiting) or any(self._busy)
