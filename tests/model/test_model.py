"""Thousands of schedules in which anything stops anywhere; what is promised must hold after each.

`MODEL_SCHEDULES=5000 pytest tests/model/test_model.py` runs more of them, each time others.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.model.actors import Driver, Life
from tests.model.script import Process
from tests.model.world import World, chooser

T = TypeVar("T")

MANY = int(os.environ.get("MODEL_SCHEDULES", "0"))
pytestmark = pytest.mark.timeout(0 if MANY else 300)

# keys whose files meet: `a` split into `b` is the file of `a_b`; `a_b.bin` is in the way of a folder of that name
KEYS = ("a", "a_b", "d/e", "d/f", "a_b.bin/g")
NAMES: tuple[tuple[str, ...], ...] = ((), ("b", "c"))

outputs = st.tuples(st.sampled_from(KEYS), st.sampled_from(NAMES), st.integers(0, 2))
batches = st.lists(outputs, min_size=1, max_size=3)
newest_first = st.integers(0, 3)
soon = st.integers(1, 40)
seeds = st.integers(0, 1000)


def nth(items: list[T], number: int) -> T:
    """The newest item for 0, older ones for more."""
    return items[-1 - number % len(items)]


class Schedules(RuleBasedStateMachine):
    """One schedule. Rules name drivers, lives and writers by age, the newest first."""

    with_store = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(with_store=self.with_store)
        self.world.take_over()

    def driver(self, number: int) -> Driver | None:
        self.somebody_runs_it()
        alive = [driver for driver in self.world.drivers if driver.process.alive]
        return nth(alive, number) if alive else None

    def life(self, number: int) -> Life | None:
        self.somebody_runs_it()
        alive = [life for life in self.world.lives if life.process.alive]
        return nth(alive, number) if alive else None

    def somebody_runs_it(self) -> None:
        """Where nobody is left there is nothing to see: the script is started again."""
        if not any(life.process.alive for life in self.world.lives):
            self.world.take_over()

    def later(self, operations: int, what: Callable[[Process], None]) -> None:
        self.world.script.plan[self.world.script.ops + operations] = what

    # -- work --------------------------------------------------------------------------------------------------------

    @rule(life=newest_first, batch=batches, steps=st.integers(0, 12) | st.just(100))
    def write(self, life: int, batch: list[tuple[str, tuple[str, ...], int]], steps: int) -> None:
        if (found := self.life(life)) is not None:
            self.world.write(found, batch).run(steps)

    @precondition(lambda self: self.world.writings)
    @rule(writing=st.integers(0, 6), steps=st.integers(1, 12))
    def go_on_writing(self, writing: int, steps: int) -> None:
        nth(self.world.writings, writing).run(steps)

    @precondition(lambda self: self.with_store)
    @rule(life=newest_first, steps=st.integers(0, 6), instead=st.booleans())
    def upload(self, life: int, steps: int, instead: bool) -> None:
        if (found := self.life(life)) is not None:
            self.world.upload(found, instead_of_the_last=instead).run(steps)

    @precondition(lambda self: self.world.uploadings)
    @rule(uploading=newest_first, steps=st.integers(1, 6))
    def go_on_uploading(self, uploading: int, steps: int) -> None:
        nth(self.world.uploadings, uploading).run(steps)

    @rule(life=newest_first)
    def publish_rest(self, life: int) -> None:
        if (found := self.life(life)) is not None:
            self.world.guarded(lambda: found.call(found.ledger.publish_rest))

    @rule(driver=newest_first)
    def seal(self, driver: int) -> None:
        if (found := self.driver(driver)) is not None:
            self.world.guarded(found.seal)

    # -- new lives ---------------------------------------------------------------------------------------------------

    @rule(zombies=st.integers(0, 3))
    def take_over(self, zombies: int) -> None:
        self.world.take_over()
        self.go_on(zombies)

    @rule(driver=newest_first, kill=st.booleans(), zombies=st.integers(0, 3))
    def restart_ledger(self, driver: int, kill: bool, zombies: int) -> None:
        if (found := self.driver(driver)) is not None:
            self.world.restart_ledger(found, kill=kill)
        self.go_on(zombies)

    def go_on(self, zombies: int) -> None:
        """Writers of older lives come to their end only now."""
        for writing in self.world.writings[::-1][:zombies]:
            writing.run()

    # -- faults ------------------------------------------------------------------------------------------------------

    @rule(seed=seeds)
    def cut_power(self, seed: int) -> None:
        self.world.power_cut(chooser(seed))

    @rule(seed=seeds, operations=soon)
    def cut_power_soon(self, seed: int, operations: int) -> None:
        self.later(operations, lambda process: self.world.power_cut(chooser(seed)))

    @rule(operations=soon)
    def kill_soon(self, operations: int) -> None:
        self.later(operations, Process.kill)

    @rule(operations=soon, batch=batches, steps=st.integers(0, 12), upload=st.booleans(), seal=st.booleans())
    def pause_soon_and_be_taken_over(
        self, operations: int, batch: list[tuple[str, tuple[str, ...], int]], steps: int, upload: bool, seal: bool
    ) -> None:
        """Whoever does that operation sleeps while another driver takes over and works, then wakes up."""

        def meanwhile(process: Process) -> None:
            self.world.script.note(f"{process.name} falls asleep")
            self.world.take_over()
            if (life := self.life(0)) is not None:
                self.world.write(life, batch).run(steps)
                if upload and self.with_store:
                    self.world.upload(life, instead_of_the_last=False).run()
            if seal and (driver := self.driver(0)) is not None:
                self.world.guarded(driver.seal)
            self.world.script.note(f"{process.name} wakes up")

        self.later(operations, meanwhile)

    @rule(kind=st.sampled_from(("rename", "sync", "sync_dir", "write", "create")), after=st.booleans())
    def disk_error(self, kind: str, after: bool) -> None:
        when = "after" if after and kind == "rename" else "before"
        self.world.disk.faults[kind] = (when, errno.EIO)

    @precondition(lambda self: self.with_store)
    @rule(fault=st.sampled_from(("lost", "failed", "late")))
    def store_fault(self, fault: str) -> None:
        self.world.bucket.fault = fault

    @precondition(lambda self: self.with_store)
    @rule()
    def land(self) -> None:
        self.world.bucket.land()

    # -- the promises ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.world.finish()
        except BaseException:
            note(self.world.script.told())
            raise


class SchedulesWithStore(Schedules):
    with_store = True


few = settings(
    max_examples=MANY or 150,
    stateful_step_count=25,
    deadline=None,
    derandomize=not MANY,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)

TestStagingIsTheDestination = Schedules.TestCase
TestStagingIsTheDestination.settings = few
TestStoreIsTheDestination = SchedulesWithStore.TestCase
TestStoreIsTheDestination.settings = few
