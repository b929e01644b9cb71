"""What a producer gets for an output that was accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from concurrent.futures import Future

from ray_sink.records import Receipt

Outcome = Receipt | Exception


class Ticket:
    """A promise of a receipt. Await it, or call `result`.

    Attributes:
        key: the output's key.
    """

    __slots__ = ("_batch", "_index", "key")

    def __init__(self, key: str, batch: Future[Sequence[Outcome]], index: int) -> None:
        self.key = key
        self._batch = batch
        self._index = index

    def done(self) -> bool:
        """Whether the receipt, or an error, is there."""
        return self._batch.done()

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the receipt.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: it is not there yet; the output is still on its way.
            SinkError: why this output could not be committed.
        """
        return self._receipt(self._batch.result(timeout))

    def __await__(self) -> Generator[object, None, Receipt]:
        return self._receipt((yield from asyncio.wrap_future(self._batch).__await__()))

    def _receipt(self, outcomes: Sequence[Outcome]) -> Receipt:
        outcome = outcomes[self._index]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def tickets_for(keys: Sequence[str]) -> tuple[list[Ticket], Future[Sequence[Outcome]]]:
    """The tickets of a batch, and what settles them: one outcome for each, in order."""
    batch: Future[Sequence[Outcome]] = Future()
    # from now on nobody who gives up waiting can cancel it for the others
    batch.set_running_or_notify_cancel()
    return [Ticket(key, batch, index) for index, key in enumerate(keys)], batch


def settled(tickets: Sequence[Ticket]) -> list[Outcome]:
    """Wait for all of them, in a thread of the caller's."""
    return [ticket._batch.result()[ticket._index] for ticket in tickets]


async def outcomes_of(tickets: Sequence[Ticket]) -> list[Outcome]:
    """Wait for all of them; a batch wakes the event loop once, and not for each of its outputs."""
    for batch in dict.fromkeys(ticket._batch for ticket in tickets):
        await asyncio.wrap_future(batch)
    return settled(tickets)
