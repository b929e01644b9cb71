"""Thousands of schedules in which anything stops anywhere; what is promised must hold after each.

A schedule that fails is printed with the command that runs it again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.faults.runs import ALL
from tests.model.schedule import KEYS, PLACES, Schedule
from tests.model.script import LEDGER
from tests.model.store import PUT_FAULTS
from tests.model.world import CALL_FAULTS

SCHEDULES = 500 if ALL else 150
"""In each part: two parts in `make test`, ten in `make faults`, each time others."""
PARTS = 5 if ALL else 1

DISK_CALLS = ("rename", "sync", "sync_dir", "write", "create")

pytestmark = pytest.mark.timeout(900)

NAMES: tuple[tuple[str, ...], ...] = ((), ("b", "c"))
outputs = st.tuples(st.sampled_from(KEYS), st.sampled_from(NAMES), st.integers(0, 2))
batches = st.lists(outputs, min_size=1, max_size=3)
newest_first = st.sampled_from((0, 0, 0, 1, 1, 2, 3))
works = st.integers(0, 7)
stops = st.sampled_from(
    (LEDGER, LEDGER, LEDGER, "sync_dir", "rename", "size", "list", "put", "has the answer to put", "remove")
)
until = st.none() | stops | st.integers(0, 40)
far = st.none() | stops | st.integers(0, 120)

Action = tuple[str, dict[str, object]]


def action(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Action]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


def one_of(weighted: list[st.SearchStrategy[Action]]) -> st.SearchStrategy[Action]:
    """Those that are in the list several times come more often; `st.one_of` would make them one."""
    return st.sampled_from(range(len(weighted))).flatmap(lambda number: weighted[number])


write = action("write", life=newest_first, batch=batches, until=until)
go_on = action("go_on", work=works, until=until)
ACTIONS = [
    *[write] * 7,
    *[go_on] * 5,
    action("publish_rest", life=newest_first, until=until),
    *[action("beat", driver=st.integers(0, 3), until=until)] * 2,
    action("close", driver=newest_first, until=far),
    *[action("take_over", until=far)] * 2,
    *[action("restart_ledger", driver=newest_first, kill=st.booleans(), until=far)] * 2,
    *[action("kill", work=works)] * 2,
    action("kill_ledger", life=newest_first),
    action("cut_power", seed=st.just(0) | st.integers(0, 1000)),
    action("call_fault", kind=st.sampled_from(CALL_FAULTS)),
    *[action("disk_error", kind=st.sampled_from(DISK_CALLS), after=st.booleans(), times=st.integers(1, 3))] * 2,
]
STORE_ACTIONS = [
    *[action("upload", life=newest_first, index=st.integers(0, 1), until=until)] * 5,
    *[action("store_fault", kind=st.sampled_from(PUT_FAULTS))] * 4,
    action("store_away", requests=st.integers(1, 12)),
    action("land"),
    action("put_foreign", path=st.sampled_from(PLACES), sink=st.booleans()),
]


class Schedules(RuleBasedStateMachine):
    """One schedule. One rule, so that Hypothesis leaves no kind of action out of it."""

    with_store = False
    texts: set[str]
    happened: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(with_store=self.with_store)

    @rule(action=one_of(ACTIONS))
    def act(self, action: Action) -> None:
        name, arguments = action
        self.schedule.do(name, **arguments)

    def teardown(self) -> None:
        self.schedule.finish()
        self.texts.add(self.schedule.text)
        self.happened.update(self.schedule.world.script.happened)


class SchedulesWithStore(Schedules):
    with_store = True

    @rule(action=one_of(ACTIONS + STORE_ACTIONS))
    def act(self, action: Action) -> None:
        name, arguments = action
        self.schedule.do(name, **arguments)


FAULTS = {"power cut", "kill", "fenced by its heart", *CALL_FAULTS, *(f"{call} fails" for call in DISK_CALLS)}
STORE_FAULTS = {*PUT_FAULTS, "store away", "landed", "somebody else's object"}


def explore(
    machine: type[Schedules], schedules: int, *, anew: bool = False, shrink: bool = True
) -> tuple[set[str], Counter[str]]:
    """Try so many schedules; the texts of those that kept every promise, and what happened in them.

    Raises:
        Violation: one did not.
    """
    texts: set[str] = set()
    happened: Counter[str] = Counter()
    run_state_machine_as_test(
        type(machine.__name__, (machine,), {"texts": texts, "happened": happened}),
        settings=settings(
            max_examples=schedules,
            stateful_step_count=25,
            deadline=None,
            derandomize=not anew,
            database=None,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
    return texts, happened


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("machine", [Schedules, SchedulesWithStore], ids=["folder", "store"])
def test_what_is_promised_holds_after_any_schedule(machine: type[Schedules], part: int) -> None:
    texts, happened = explore(machine, SCHEDULES + SCHEDULES // 8, anew=ALL)  # some come twice
    assert len(texts) >= SCHEDULES
    assert FAULTS | (STORE_FAULTS if machine.with_store else set()) <= happened.keys()
