"""What a producer gets for an output that was accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from time import perf_counter

from ray_sink.records import Receipt

Outcome = Receipt | Exception


class Settling(Future[Sequence[Outcome]]):
    """What settles the tickets of a batch: one outcome for each, in order.

    Attributes:
        waited: told for how many seconds somebody was held up by waiting for it.
    """

    def __init__(self, waited: Callable[[float], None]) -> None:
        super().__init__()
        self.waited = waited


class Ticket:
    """A promise of a receipt. Await it, or call `result`.

    Attributes:
        key: the output's key.
    """

    __slots__ = ("_batch", "_index", "key")

    def __init__(self, key: str, batch: Settling, index: int) -> None:
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
        if self._batch.done():
            return self._receipt(self._batch.result())
        began_s = perf_counter()
        try:
            return self._receipt(self._batch.result(timeout))
        finally:
            self._batch.waited(perf_counter() - began_s)

    def __await__(self) -> Generator[object, None, Receipt]:
        return self._receipt((yield from asyncio.wrap_future(self._batch).__await__()))

    def _receipt(self, outcomes: Sequence[Outcome]) -> Receipt:
        outcome = outcomes[self._index]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def tickets_for(keys: Sequence[str], waited: Callable[[float], None]) -> tuple[list[Ticket], Settling]:
    """The tickets of a batch, and what settles them."""
    batch = Settling(waited)
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
