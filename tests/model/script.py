"""Who does what when: processes that can end before any operation, and what is to happen at an operation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


class Stopped(BaseException):
    """The process that would have done the next operation is gone. No clean-up code may catch it."""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(eq=False)
class Process:
    """Whoever does operations; dead for good once `alive` is False. What an observer does is no operation."""

    name: str
    alive: bool = True
    observer: bool = False
    asleep: bool = False

    def gone(self) -> bool:
        return not self.alive

    def kill(self) -> None:
        self.alive = False


@dataclass
class Script:
    """Counts every operation on disk and store, and does what is planned before the n-th.

    Attributes:
        ops: operations so far.
        plan: what happens before the operation of that number; gets the process that is about to do it.
        trace: the last operations, for the report of a failure.
        fired: plans and faults that came true.
    """

    ops: int = 0
    plan: dict[int, Callable[[Process], None]] = field(default_factory=dict)
    trace: deque[tuple[object, ...]] = field(default_factory=lambda: deque(maxlen=400))
    fired: int = 0

    def step(self, process: Process, what: str, where: object = "") -> None:
        """The process is about to do an operation."""
        if process.observer:
            return
        if not process.alive:
            raise Stopped(process.name)
        self.ops += 1
        self.trace.append((self.ops, process.name, what, where))
        action = self.plan.pop(self.ops, None)
        if action is not None:
            self.fired += 1
            process.asleep = True
            action(process)
            process.asleep = False
        if process.gone():
            self.note(f"{process.name} ended before this")
            raise Stopped(process.name)

    def note(self, text: str) -> None:
        self.trace.append(("--", text))

    def told(self) -> str:
        """The last operations, a line each."""
        return "\n".join(" ".join(map(str, line)) for line in self.trace)


@dataclass
class Clock:
    """Time that passes only when somebody waits."""

    now_s: float = 0.0
    while_waiting: Callable[[], None] | None = None

    def read(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += 12 * seconds  # whoever sleeps may oversleep; and there is less to read
        if self.while_waiting is not None:
            self.while_waiting()
