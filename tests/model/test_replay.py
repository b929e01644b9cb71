"""What a failing schedule prints is enough to run it again; and the model sees what is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_sink.staging import Staging
from tests.model.schedule import Schedule
from tests.model.script import Violation
from tests.model.test_model import Schedules, explore

RICH = """
store
write(life=0, batch=[('a', ('b', 'c'), 0), ('d/e', (), 0)], until=None)
write(life=0, batch=[('d/f', (), 0)], until='rename')
store_fault(kind='put lost its answer')
upload(life=0, index=1, until=None)
kill(work=0)
take_over(until=90)
upload(life=0, index=0, until='put')
disk_error(kind='rename', after=True, times=1)
go_on(work=1, until=None)
go_on(work=0, until=3)
cut_power(seed=7)
"""

FOUND = {
    "a look at the temps after a failed rename is not a sync that can fail": """
store
write(life=0, batch=[('a_b', (), 0)], until='ledger')
go_on(work=0, until='ledger')
disk_error(kind='rename', after=False, times=1)
disk_error(kind='sync_dir', after=False, times=1)
go_on(work=0, until=None)
cut_power(seed=1)
""",
    "another's sync says yes between a sync that failed and what its writer does about that": """
folder
write(life=0, batch=[('a', (), 0)], until='ledger')
write(life=0, batch=[('a', (), 0)], until=None)
write(life=0, batch=[('a', (), 0)], until=None)
write(life=0, batch=[('a', (), 0)], until=None)
write(life=0, batch=[('a', (), 0)], until=None)
take_over(until='ledger')
beat(driver=0, until=None)
disk_error(kind='sync_dir', after=False, times=2)
write(life=0, batch=[('a', (), 0)], until=None)
write(life=0, batch=[('a', (), 0)], until=0)
go_on(work=6, until=6)
go_on(work=0, until=None)
""",
}
"""Schedules of 5,000 and more that once broke a promise."""


def printed_by(error: BaseException) -> str:
    note = next(note for note in error.__notes__ if "<<'END'\n" in note)
    return note.partition("<<'END'\n")[2].partition("\nEND")[0]


def test_a_schedule_is_the_same_whenever_it_is_run() -> None:
    here = Schedule.replay(RICH).world.script
    assert here.happened["put lost its answer"]
    assert here.happened["rename fails"]
    for hashing in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-m", "tests.model.replay"],
            input=RICH,
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": hashing},
        )
        assert there.stdout == f"{here.told()}\n-- every promise was kept\n"


@pytest.mark.parametrize("schedule", FOUND.values(), ids=FOUND)
def test_what_was_found_once_is_not_found_again(schedule: str) -> None:
    Schedule.replay(schedule)


def test_a_failing_schedule_is_printed_and_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Staging, "_sync", lambda self, folders: None)  # names that a power cut takes away
        with pytest.raises(Violation) as failed:
            explore(Schedules, 100, shrink=False)
        text = printed_by(failed.value)
        with pytest.raises(Violation) as again:
            Schedule.replay(text)
        assert str(again.value) == str(failed.value)
    Schedule.replay(text)
