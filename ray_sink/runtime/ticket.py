"""What a producer gets for an output that was accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future

from ray_sink.records import Receipt


class Ticket:
    """A promise of a receipt. Await it, or call `result`.

    Attributes:
        key: the output's key.
    """

    __slots__ = ("_future", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self._future: Future[Receipt] = Future()

    def done(self) -> bool:
        """Whether the receipt, or an error, is there."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the receipt.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: it is not there yet; the output is still on its way.
            SinkError: why this output could not be committed.
        """
        return self._future.result(timeout)

    def __await__(self) -> Generator[object, None, Receipt]:
        return asyncio.wrap_future(self._future).__await__()

    def settle(self, outcome: Receipt | Exception) -> None:
        """Give the ticket its end; the handle's business."""
        if isinstance(outcome, Receipt):
            self._future.set_result(outcome)
        else:
            self._future.set_exception(outcome)
