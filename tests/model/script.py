"""Who does what when: everybody's code runs for as many operations as it is told to, one at a time, or ends there."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

Until = int | str | None
"""How far work goes: so many operations; up to before the next operation of that name, one at least; to its end."""

LEDGER = "ledger"
"""As an `Until`: up to before the next operation of the ledger that is called."""


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

    def kill(self) -> None:
        self.alive = False

    def is_gone(self) -> bool:
        return not self.alive


class Work:
    """What one thread of one process does. It stands still between any two of its operations until it is told to go on.

    It has a thread of its own, and only one of all threads runs at a time: whoever calls `run` waits for it.
    """

    def __init__(self, script: Script, process: Process, what: str, body: Callable[[], None]) -> None:
        self.process = process
        self.what = what
        self.ended = False
        self.waits_for: Work | None = None
        self._script = script
        self._body = body
        self._until: Until = None
        self._done = 0
        self._running = False
        self._error: BaseException | None = None
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def run(self, until: Until = None) -> None:
        """Go on so far, or until another has to go on first, or to the end.

        Raises:
            Violation: it found a promise broken.
        """
        if self.ended or self._running:
            return
        before, self._script.working = self._script.working, self
        self._until, self._done, self._running = until, 0, True
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name=self.what, daemon=True)
            self._thread.start()
        self._turn.release()
        self._back.acquire()
        self._running = False
        self._script.working = before
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def run_to_end(self) -> None:
        """Go on to the end, and those before it that it has to wait for; unless one of them waits for us."""
        while not self.ended and not self._running:
            self.run()
            if self.waits_for is None or self.waits_for._running:
                break
            self.waits_for.run_to_end()

    def _main(self) -> None:
        self._turn.acquire()
        try:
            self._body()
        except Stopped:
            self._script.note(f"{self.process.name} ended")
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self._error = error
        self.ended = True
        self._back.release()

    # -- from inside -------------------------------------------------------------------------------------------------

    def next_operation(self, what: str) -> None:
        """About to do one of that name."""
        if (self._done and self._until == what) or self._until == self._done:
            self._stand_still()
        self._done += 1

    def wait_for(self, other: Callable[[], Work | None]) -> None:
        """Stand still until nobody has to go on first."""
        while (first := other()) is not None:
            self.waits_for = first
            self._stand_still()
        self.waits_for = None

    def _stand_still(self) -> None:
        self._back.release()
        self._turn.acquire()


@dataclass
class Script:
    """Counts every operation on disk and store, and does what is planned before the n-th.

    Attributes:
        ops: operations so far.
        plan: what happens before the operation of that number; gets the process that is about to do it.
        trace: the last operations, for the report of a failure.
        happened: how often what came true: plans, faults, and what else a schedule is meant to reach.
        working: who runs now; None for the schedule itself.
    """

    ops: int = 0
    plan: dict[int, Callable[[Process], None]] = field(default_factory=dict)
    trace: deque[tuple[object, ...]] = field(default_factory=lambda: deque(maxlen=400))
    happened: Counter[str] = field(default_factory=Counter)
    working: Work | None = None

    def step(self, process: Process, what: str, where: object = "") -> None:
        """The process is about to do an operation."""
        if process.observer:
            return
        if self.working is not None:
            self.working.next_operation(LEDGER if process.name.startswith(LEDGER) else what)
        if not process.alive:
            raise Stopped(process.name)
        self.ops += 1
        self.trace.append((self.ops, process.name, what, where))
        action = self.plan.pop(self.ops, None)
        if action is not None:
            self.happened["planned"] += 1
            action(process)
        if process.is_gone():
            self.note(f"{process.name} ended before this")
            raise Stopped(process.name)

    def note(self, text: str) -> None:
        self.trace.append(("--", text))

    def fired(self, fault: str, text: str = "") -> None:
        """A fault came true."""
        self.happened[fault] += 1
        self.note(f"{text} {fault}".strip())

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
