"""How long a filesystem is waited for that is full, fails for a moment, or does not answer."""

from __future__ import annotations

import errno
import queue
import threading
import time
import weakref
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from ray_sink.errors import StagingError
from ray_sink.events import DiskFull, emit

T = TypeVar("T")

Tick = Callable[[], None]
"""Called by whoever has got on a bit."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MOMENTARY = frozenset({errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN, errno.EBUSY})
_TRIES = 3
_PAUSE_S = 0.5


class Patience:
    """Tries again, with a new file each time, and gives up what never comes back.

    Args:
        wait_s: how long a full disk is waited for, and how long a file operation may take, or one 4 MiB part of a copy,
            until it is given up, seconds.
        clock: monotonic, seconds.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        wait_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wait_s = wait_s
        self._clock = clock
        self._sleep = sleep
        self._idle: list[_Hand] = []
        self._watched = threading.local()
        weakref.finalize(self, _leave_all, self._idle)

    def again(self, attempt: Callable[[int], T]) -> T:
        """Return what `attempt` returns.

        Args:
            attempt: gets the number of the try, from 0. It begins anew each time: what an fsync or a write has failed
                may look whole afterwards, and is not.

        Raises:
            StagingError: the last one; or one that another try cannot mend.
        """
        began_s = self._clock()
        failures = waits = 0
        for number in count():
            try:
                return attempt(number)
            except StagingError as error:
                code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
                if code in _FULL:
                    waited_s = self._clock() - began_s
                    if waited_s >= self._wait_s:
                        raise StagingError(f"{error} (waited {waited_s:.0f} s for room)") from error.__cause__
                    if not waits:
                        emit(DiskFull(str(error)))
                    waits += 1
                    self._sleep(_PAUSE_S)
                elif code in _MOMENTARY and failures < _TRIES - 1:
                    failures += 1
                else:
                    raise
        raise AssertionError("count() has no end")

    def within(self, doing: str, call: Callable[[Tick], T]) -> T:
        """Return what `call` returns, unless it shows no life for `wait_s`. Inside `steps`, one of them.

        A thread inside a file operation cannot be stopped: it is left behind, and whatever it still does must be
        harmless.

        Raises:
            StagingError: it was given up; caused by a TimeoutError.
        """
        outer: _Watch | None = getattr(self._watched, "watch", None)
        if outer is not None:
            outer.begin(doing)
            try:
                return call(outer.tick)
            finally:
                outer.doing = None
        watch = _Watch(self._clock)
        watch.begin(doing)
        return self._watching(watch, lambda: call(watch.tick))

    def steps(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, which calls `within` again and again: on one thread, instead of one for each.

        What it does between these may take as long as it takes.

        Raises:
            StagingError: one of them was given up, and with it the rest; caused by a TimeoutError.
        """
        watch = _Watch(self._clock)

        def run() -> T:
            self._watched.watch = watch
            try:
                return call()
            finally:
                self._watched.watch = None

        return self._watching(watch, run)

    def _watching(self, watch: _Watch, call: Callable[[], T]) -> T:
        ended = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                errors.append(error)
            finally:
                ended.set()

        hand = self._idle.pop() if self._idle else _Hand()
        hand.take(run)
        left_s = self._wait_s
        while not ended.wait(left_s):
            doing, left_s = watch.doing, watch.last_s + self._wait_s - self._clock()
            if doing is None:
                left_s = self._wait_s
            elif left_s <= 0:
                hand.leave()
                raise silence(doing, self._wait_s)
        self._idle.append(hand)
        if errors:
            raise errors[0]
        return results[0]


class _Watch:
    """What a call is doing with the filesystem, if anything, and when it last showed life."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.doing: str | None = None
        self.last_s = 0.0

    def begin(self, doing: str) -> None:
        self.tick()
        self.doing = doing

    def tick(self) -> None:
        self.last_s = self._clock()


class _Hand:
    """A thread that does one call after the other: starting one for each would take as long as a small file does."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._calls,), name="ray_sink-file", daemon=True).start()

    def take(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def leave(self) -> None:
        """End when the present call does."""
        self._calls.put(None)


def _work(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # and what it holds, while there is nothing to do


def _leave_all(hands: list[_Hand]) -> None:
    for hand in hands:
        hand.leave()


def silence(doing: str, wait_s: float) -> StagingError:
    """The error for an operation that has shown no life for `wait_s` seconds; caused by a TimeoutError."""
    error = StagingError(
        f"{doing}: the filesystem has not answered for {wait_s:g} s. See whether it hangs; what was decided is safe"
    )
    error.__cause__ = TimeoutError(errno.ETIMEDOUT, "no answer")
    return error


def is_silence(error: StagingError) -> bool:
    """Whether `error` is a `silence`: asking the same filesystem again would only take as long."""
    return isinstance(error.__cause__, TimeoutError)
