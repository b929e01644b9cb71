"""A schedule: who begins, goes on, and ends when, and what goes wrong. Its text is enough to run it again."""

from __future__ import annotations

import ast
import errno
from typing import TypeVar, cast

from tests.model.actors import Driver, Life
from tests.model.script import TO_ITS_END
from tests.model.store import PutFault
from tests.model.world import CallFault, World, chooser

T = TypeVar("T")

# keys whose files meet: `a` split into `b` is the file of `a_b`; `a_b.bin` is in the way of a folder of that name
KEYS = ("a", "a_b", "d/e", "d/f", "a_b.bin/g")
PLACES = ("a.bin", "a_b.bin", "d/e.bin", "d/f_c.bin")

Batch = list[tuple[str, tuple[str, ...], int]]


def nth(items: list[T], number: int) -> T:
    """The newest item for 0, older ones for more."""
    return items[-1 - number % len(items)]


class Schedule:
    """A world, and the actions that change it.

    Actions name drivers, lives and works by age, the newest first, and say how many operations are done before the
    next action; None is all of them. What names nobody does nothing.
    """

    def __init__(self, *, with_store: bool) -> None:
        self.world = World(with_store=with_store)
        self.lines = ["store" if with_store else "folder"]
        self.world.take_over()

    def do(self, action: str, **arguments: object) -> None:
        """Do one action, and write it down."""
        self.lines.append(f"{action}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})")
        try:
            getattr(self, action)(**arguments)
        except BaseException as error:
            error.add_note(self.told())
            raise

    def finish(self) -> None:
        """No more faults, and what is promised must hold."""
        try:
            self.world.finish()
        except BaseException as error:
            error.add_note(self.told())
            raise

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def told(self) -> str:
        """For whoever sees it fail."""
        return (
            f"{self.world.script.told()}\n\n"
            f"These were the last operations. To run this schedule again:\n\n"
            f"python -m tests.model.replay <<'END'\n{self.text}\nEND\n"
        )

    @classmethod
    def replay(cls, text: str) -> Schedule:
        """Run a schedule again, to its end.

        Raises:
            Violation: a promise is broken.
        """
        first, *actions = (line.strip() for line in text.strip().splitlines())
        made = cls(with_store={"store": True, "folder": False}[first])
        try:
            for line in actions:
                call = ast.parse(line, mode="eval").body
                assert isinstance(call, ast.Call)
                arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                made.do(ast.unparse(call.func), **arguments)
            made.finish()
        finally:
            made.world.forget()
        return made

    # -- whom an action names ----------------------------------------------------------------------------------------

    def _driver(self, number: int) -> Driver | None:
        self._somebody_runs_it()
        found = [driver for driver in self.world.drivers if driver.process.alive]
        return nth(found, number) if found else None

    def _life(self, number: int) -> Life | None:
        self._somebody_runs_it()
        found = self.world.alive()
        return nth(found, number) if found else None

    def _somebody_runs_it(self) -> None:
        """Where nobody is left there is nothing to see: the script is started again."""
        if not self.world.alive():
            self.world.take_over()

    # -- work --------------------------------------------------------------------------------------------------------

    def write(self, life: int, batch: Batch, operations: int | None) -> None:
        if (found := self._life(life)) is not None:
            self.world.write(found, batch, _count(operations))

    def upload(self, life: int, index: int, operations: int | None) -> None:
        if (found := self._life(life)) is not None:
            self.world.upload(found, index, _count(operations))

    def publish_rest(self, life: int, operations: int | None) -> None:
        if (found := self._life(life)) is not None:
            self.world.publish_rest(found, _count(operations))

    def beat(self, driver: int, operations: int | None) -> None:
        if (found := self._driver(driver)) is not None:
            self.world.beat(found, _count(operations))

    def close(self, driver: int, operations: int | None) -> None:
        """The script comes to its end; not before anything was done, or little would happen after it."""
        if len(self.world.record.receipts) > 1 and (found := self._driver(driver)) is not None:
            self.world.close(found, _count(operations))

    def take_over(self, operations: int | None) -> None:
        self.world.take_over(_count(operations))

    def restart_ledger(self, driver: int, kill: bool, operations: int | None) -> None:
        if (found := self._driver(driver)) is not None and found.claim is not None:
            self.world.restart_ledger(found, _count(operations), kill=kill)

    def go_on(self, work: int, operations: int | None) -> None:
        if found := [work for work in self.world.works if not work.ended]:
            nth(found, work).run(_count(operations))

    # -- faults ------------------------------------------------------------------------------------------------------

    def kill(self, work: int) -> None:
        """Whoever stands there now is gone before its next operation."""
        if found := [work for work in self.world.works if not work.ended and work.process.alive]:
            process = nth(found, work).process
            self.world.script.fired("kill", process.name)
            process.kill()

    def kill_ledger(self, life: int) -> None:
        if found := self.world.alive():
            process = nth(found, life).process
            self.world.script.fired("kill", process.name)
            process.kill()

    def cut_power(self, seed: int) -> None:
        self.world.power_cut(chooser(seed))

    def disk_error(self, kind: str, after: bool) -> None:
        self.world.disk.faults[kind] = ("after" if after and kind == "rename" else "before", errno.EIO)

    def call_fault(self, kind: str) -> None:
        self.world.call_fault = cast("CallFault", kind)

    def store_fault(self, kind: str) -> None:
        self.world.bucket.fault = cast("PutFault", kind)

    def store_away(self, requests: int) -> None:
        self.world.bucket.away = requests

    def land(self) -> None:
        self.world.bucket.land()

    def put_foreign(self, path: str) -> None:
        self.world.bucket.put_foreign(path)


def _count(operations: int | None) -> int:
    return TO_ITS_END if operations is None else operations
