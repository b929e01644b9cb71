"""Room in the shared staging folder: what is staged, what writers are about to stage, what uploaders are freeing."""

from __future__ import annotations

import itertools
from collections.abc import Set

from ray_sink.runtime.credits import Budget

_STAGED = "staged"


class StagingRoom:
    """Lives in memory only. Writers wait for it in line: a large batch gets its room, too.

    Args:
        limit_bytes: all of it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._budget = Budget(limit_bytes)
        self._places = itertools.count(1)
        self._asked: dict[str, dict[str, int]] = {}
        self._writers: Set[str] | None = None

    def place(self, writer: str, batch: str) -> int:
        """The batch's place in the line, which it keeps however often it asks."""
        asked = self._asked.setdefault(writer, {})
        if batch not in asked:
            asked[batch] = next(self._places)
        return asked[batch]

    def reserve(self, writer: str, batch: str, n_bytes: int, *, staged_bytes: int) -> bool:
        """Whether the batch has its room from now on, until it is `done`.

        Args:
            writer: name of who asks. One that is gone is told so, and gets nothing: nobody hears it.
            batch: what it is for; unique.
            n_bytes: how much.
            staged_bytes: what is staged.
        """
        if self._writers is not None and writer not in self._writers:
            self._asked.pop(writer, None)
            return True
        self._budget.set(_STAGED, staged_bytes)
        self._budget.set(_batch(batch), 0)
        return self._budget.lease(_batch(batch), max(1, n_bytes)) > 0

    def done(self, writer: str, batch: str) -> None:
        """What the batch has staged is counted as that; its room is not needed any more."""
        self._budget.set(_batch(batch), 0)
        self._asked.get(writer, {}).pop(batch, None)

    def frees(self, uploader: int, n_bytes: int) -> None:
        """What an uploader was told to free, which is not staged any more, and still there."""
        self._budget.set(f"freed by {uploader}", n_bytes)

    def keep(self, writers: Set[str]) -> None:
        """These are all writers that there are: what others had reserved is free."""
        self._writers = writers
        for writer in self._asked.keys() - writers:
            for batch in self._asked.pop(writer):
                self._budget.set(_batch(batch), 0)


def _batch(batch: str) -> str:
    return f"batch {batch}"
