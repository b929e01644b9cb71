"""Discrete events: a clock that jumps, servers with queues, budgets, processes, a journal whose syncs are shared."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable

Then = Callable[[], None]


class Simulation:
    """Calls things in the order of their time.

    Attributes:
        now_s: simulated seconds.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Then]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, then: Then) -> None:
        """Call `then` at that time."""
        heapq.heappush(self._due, (time_s, next(self._numbers), then))

    def after(self, delay_s: float, then: Then) -> None:
        """Call `then` after a while."""
        self.at(self.now_s + delay_s, then)

    def run(self, until_s: float) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, then = heapq.heappop(self._due)
            then()
        self.now_s = until_s


class Servers:
    """So many of a kind, with one queue in the order of asking: cores, a disk, a process, a wire.

    Attributes:
        busy_s: seconds of service that were asked for.
    """

    def __init__(self, simulation: Simulation, count: int) -> None:
        self._simulation = simulation
        self._free_s = [0.0] * count
        self._count = count
        self.busy_s = 0.0

    def serve(self, took_s: float, then: Then) -> None:
        """Call `then` when one of them has worked for so long."""
        begin_s = max(self._simulation.now_s, self._free_s[0])
        heapq.heapreplace(self._free_s, begin_s + took_s)
        self.busy_s += took_s
        self._simulation.at(begin_s + took_s, then)

    def load(self) -> float:
        """The part of the time so far that they worked, or will have; above 1 there is a queue."""
        return self.busy_s / (self._count * self._simulation.now_s) if self._simulation.now_s else 0.0


class Budget:
    """So much of something; who asks for more waits in turn. What exceeds all of it goes alone.

    Attributes:
        used: what is taken.
    """

    def __init__(self, simulation: Simulation, limit: float) -> None:
        self._simulation = simulation
        self._limit = limit
        self._waiting: deque[tuple[float, Then]] = deque()
        self.used = 0.0

    def take(self, amount: float, then: Then) -> None:
        """Call `then` when `amount` was taken."""
        self._waiting.append((amount, then))
        self._go_on()

    def give(self, amount: float) -> None:
        """Give it back."""
        self.used -= amount
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and (self.used <= 0 or self.used + self._waiting[0][0] <= self._limit):
            amount, then = self._waiting.popleft()
            self.used += amount
            then()


class Process:
    """One thread at a time runs Python, and needs a core for it.

    Attributes:
        cores: those of its machine.
        busy_s: seconds of Python that were asked for.
    """

    def __init__(self, simulation: Simulation, cores: Servers) -> None:
        self.cores = cores
        self.busy_s = 0.0
        self._lock = Budget(simulation, 1)

    def serve(self, took_s: float, then: Then) -> None:
        """Call `then` when it has run for so long."""
        self.busy_s += took_s

        def over() -> None:
            self._lock.give(1)
            then()

        self._lock.take(1, lambda: self.cores.serve(took_s, over))


class Journal:
    """One record at a time, each with its sync; who comes in meanwhile shares the next one."""

    def __init__(self, simulation: Simulation, sync_s: float) -> None:
        self._simulation = simulation
        self._sync_s = sync_s
        self._waiting: list[Then] = []
        self._syncing = False

    def record(self, then: Then) -> None:
        """Call `then` when it is durable."""
        self._waiting.append(then)
        if not self._syncing:
            self._sync()

    def _sync(self) -> None:
        self._syncing, (batch, self._waiting) = True, (self._waiting, [])

        def durable() -> None:
            self._syncing = False
            if self._waiting:
                self._sync()
            for then in batch:
                then()

        self._simulation.after(self._sync_s, durable)
