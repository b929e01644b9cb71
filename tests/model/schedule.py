"""A schedule: who begins, goes on, and ends when, and what goes wrong. Its text is enough to run it again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from ray_sink.uploader import ATTEMPT, CHECKSUM, RUN
from tests.model.actors import Driver, Life
from tests.model.disk import Fault
from tests.model.script import Until
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

    Actions name drivers, lives and works by age, the newest first, and say how far what they begin goes
    before the next action. What names nobody does nothing.
    """

    def __init__(self, *, with_store: bool) -> None:
        self.world = World(with_store=with_store)
        self.broken = False
        self.lines = ["store" if with_store else "folder"]
        self.world.take_over()

    def do(self, action: str, **arguments: object) -> None:
        """Do one action, and write it down."""
        self.lines.append(f"{action}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})")
        with self._told_if_broken():
            getattr(self, action)(**arguments)

    def finish(self) -> None:
        """No more faults, and what is promised must hold."""
        try:
            if not self.broken:
                with self._told_if_broken():
                    self.world.finish()
        finally:
            self.world.forget()

    @contextmanager
    def _told_if_broken(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.broken = True
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
        finally:
            made.finish()
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

    def write(self, life: int, batch: Batch, until: Until) -> None:
        if (found := self._life(life)) is not None:
            self.world.write(found, batch, until)

    def upload(self, life: int, index: int, until: Until) -> None:
        if (found := self._life(life)) is not None:
            self.world.upload(found, index, until)

    def publish_rest(self, life: int, until: Until) -> None:
        if (found := self._life(life)) is not None:
            self.world.publish_rest(found, until)

    def beat(self, driver: int, until: Until) -> None:
        if (found := self._driver(driver)) is not None:
            self.world.beat(found, until)

    def close(self, driver: int, until: Until) -> None:
        """The script comes to its end; not before anything was done, or little would happen after it."""
        if len(self.world.record.receipts) > 1 and (found := self._driver(driver)) is not None:
            self.world.close(found, until)

    def take_over(self, until: Until) -> None:
        self.world.take_over(until)

    def restart_ledger(self, driver: int, kill: bool, until: Until) -> None:
        if found := [driver for driver in self.world.drivers if driver.process.alive and driver.life is not None]:
            self.world.restart_ledger(nth(found, driver), until, kill=kill)

    def go_on(self, work: int, until: Until) -> None:
        if found := [work for work in self.world.works if not work.ended]:
            nth(found, work).run(until)

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

    def disk_error(self, kind: str, after: bool, times: int) -> None:
        self.world.disk.faults[kind] = Fault(after=after and kind == "rename", times=times)

    def call_fault(self, kind: str) -> None:
        self.world.call_fault = cast("CallFault", kind)

    def store_fault(self, kind: str) -> None:
        self.world.bucket.fault = cast("PutFault", kind)

    def store_away(self, requests: int) -> None:
        self.world.bucket.away = requests

    def land(self) -> None:
        self.world.bucket.land()

    def put_foreign(self, path: str, sink: bool) -> None:
        """Another run's output, or something that no sink wrote."""
        self.world.bucket.put_foreign(path, {RUN: "other", ATTEMPT: "t1", CHECKSUM: "other"} if sink else {})
