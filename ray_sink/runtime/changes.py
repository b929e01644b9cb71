"""Who waits for what to change: looked at when that has changed, and not whenever anything has."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

_NO_LINE = 0


@dataclass(slots=True, order=True)
class _Waiter:
    place: int
    met: Callable[[], bool] = field(compare=False)
    over: asyncio.Future[None] = field(compare=False)


class Changes:
    """On one event loop. A subject is whatever those who tell of it and those who wait for it both call it."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[_Waiter]] = {}

    async def until(
        self, subject: Hashable, met: Callable[[], bool], timeout_s: float | None, *, place: int = _NO_LINE
    ) -> bool:
        """Wait until `met`, looked at now and whenever the subject has changed.

        Args:
            subject: what `met` depends on.
            met: it may take what it finds: it is not looked at again when it has been true.
            timeout_s: how long, seconds; None: for as long as it takes.
            place: in the line of those who wait for the subject, from 1: nobody takes what those before have not got.

        Returns:
            False when the time was up.

        Raises:
            Exception: as `met` raised it.
        """
        line = self._waiting.setdefault(subject, [])
        first = next((other for other in line if not other.over.done()), None)
        if not (place and first is not None and first.place < place) and met():
            return True
        waiter = _Waiter(place, met, asyncio.get_running_loop().create_future())
        insort(line, waiter)
        try:
            await asyncio.wait([waiter.over], timeout=timeout_s)
            if not waiter.over.done():
                return False
            waiter.over.result()
            return True
        finally:
            # by identity: those without a place are equal
            line[:] = [other for other in line if other is not waiter]

    def tell(self, *subjects: Hashable) -> None:
        """These have changed."""
        for subject in subjects:
            for waiter in list(self._waiting.get(subject, ())):
                if not waiter.over.done() and not self._is_met(waiter) and waiter.place:
                    break

    def tell_all(self) -> None:
        """Anything may have changed."""
        self.tell(*self._waiting)

    @staticmethod
    def _is_met(waiter: _Waiter) -> bool:
        try:
            met = waiter.met()
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            waiter.over.set_exception(error)
            return True
        if met:
            waiter.over.set_result(None)
        return met
