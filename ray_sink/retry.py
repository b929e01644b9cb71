"""Trying again, within bounds, and asking for less when a store cannot keep up.

One mechanism for the whole package. Time, sleep and randomness are handed in, so that tests need no clock.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ray_sink.errors import StoreUnavailableError
from ray_sink.events import UploadRetried

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and for how long.

    Attributes:
        attempts: most tries, the first included.
        total_s: no try begins later than this after the first one began, seconds.
        first_s: upper bound of the first pause, seconds; it doubles with every try.
        most_s: upper bound of any pause, seconds.
    """

    attempts: int = 40
    total_s: float = 900.0
    first_s: float = 0.2
    most_s: float = 30.0


@dataclass(frozen=True, slots=True)
class FailedTry:
    """A try that failed and will be followed by another.

    Attributes:
        number: which try failed, from 1.
        pause_s: how long the next one waits, seconds.
        error: what went wrong.
    """

    number: int
    pause_s: float
    error: StoreUnavailableError


def retried(path: str, failed: FailedTry, *, part: int | None = None) -> UploadRetried:
    """The event for an object, or a part of it, that will be sent again."""
    error = failed.error
    return UploadRetried(path, failed.number, failed.pause_s, error.slow_down, str(error), part)


class Retry:
    """Calls something until it works, gives up, or fails in a way that trying again cannot mend.

    Only `StoreUnavailableError` is tried again; everything else passes through at once.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.policy = policy or RetryPolicy()
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    def call(
        self,
        action: Callable[[int], T],
        *,
        on_failure: Callable[[FailedTry], None] | None = None,
    ) -> T:
        """Return what `action` returns.

        Args:
            action: gets the number of the try, from 1.
            on_failure: told of every try that will be followed by another, before the pause.

        Raises:
            StoreUnavailableError: the last one, noting how often and how long it was tried.
        """
        began_s = self._clock()
        number = 0
        while True:
            number += 1
            try:
                return action(number)
            except StoreUnavailableError as error:
                pause_s = self._pause_s(number)
                spent_s = self._clock() - began_s
                if number >= self.policy.attempts or spent_s + pause_s > self.policy.total_s:
                    error.add_note(f"gave up after {number} tries in {spent_s:.1f} s")
                    raise
                if on_failure is not None:
                    on_failure(FailedTry(number, pause_s, error))
                self._sleep(pause_s)

    def _pause_s(self, number: int) -> float:
        # half fixed, half random: spreads a crowd of uploaders and still gives the store air
        bound_s = min(self.policy.most_s, self.policy.first_s * 2.0 ** min(number - 1, 60))
        return bound_s / 2 + self._uniform(0, bound_s / 2)


class ConcurrencyGate:
    """Lets work in while fewer than so many items and so many bytes are inside.

    The count adapts as TCP does: halved when the store asks for less or does not keep up, at most once per
    `cooldown_s`; after that it grows by one for every round of successes, up to `most`. First come, first served.
    An item larger than the whole byte budget goes in alone, when nothing else is inside.
    """

    def __init__(
        self,
        most: int,
        most_bytes: int,
        *,
        cooldown_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int, int], None] | None = None,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._on_change = on_change
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._allowed = float(most)
        self._fell_s: float | None = None
        self._inside = 0
        self._bytes = 0
        self._peak = 0
        self._peak_bytes = 0

    @property
    def allowed(self) -> int:
        """How many items may be inside now."""
        return int(self._allowed)

    @property
    def peak(self) -> int:
        """Most items that were inside at once."""
        return self._peak

    @property
    def peak_bytes(self) -> int:
        """Most bytes that were inside at once."""
        return self._peak_bytes

    @contextmanager
    def enter(self, held_bytes: int) -> Iterator[None]:
        """Wait for room for one item that holds `held_bytes`, and keep it for the length of the block.

        A `StoreUnavailableError` with ``slow_down`` that leaves the block lowers the count; leaving without an
        error raises it.
        """
        with self._changed:
            if self._waiting or not self._has_room(held_bytes):
                self._queue(held_bytes)
            self._inside += 1
            self._bytes += held_bytes
            self._peak = max(self._peak, self._inside)
            self._peak_bytes = max(self._peak_bytes, self._bytes)
        step: Callable[[], None] | None = None
        try:
            yield
            step = self._rise
        except StoreUnavailableError as error:
            step = self._fall if error.slow_down else None
            raise
        finally:
            with self._changed:
                self._inside -= 1
                self._bytes -= held_bytes
                before = self.allowed
                if step is not None:
                    step()
                after = self.allowed
                if self._waiting:
                    self._changed.notify_all()
            if before != after and self._on_change is not None:
                self._on_change(before, after)

    def _queue(self, held_bytes: int) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._has_room(held_bytes))
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def _has_room(self, held_bytes: int) -> bool:
        if self._inside == 0:
            return True
        return self._inside < self.allowed and self._bytes + held_bytes <= self._most_bytes

    def _fall(self) -> None:
        # one storm is one signal: the replies of requests sent before the fall do not count again
        now_s = self._clock()
        if self._fell_s is None or now_s - self._fell_s >= self._cooldown_s:
            self._fell_s = now_s
            self._allowed = max(1.0, self._allowed / 2)

    def _rise(self) -> None:
        self._allowed = min(float(self._most), self._allowed + 1 / self._allowed)
