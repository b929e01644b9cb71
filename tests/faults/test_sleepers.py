"""A process that sleeps while another takes its run over, and wakes up: whatever it still does must be harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.processes import Call, Jobs
from tests.faults.runs import ALL, CHANGING, Run, at_call, changes, fire, some
from tests.waiting import until

PLAN = Plan(outputs=3, split=True)
AT_A_TIME = ("--batch", 2, "--nonce", "x")

pytestmark = pytest.mark.timeout(0 if ALL else 120)


def sleep_after(run: Run, call: Call, *, wakes_late: bool) -> bool:
    """The run stopped after `call`, taken over, woken up; whether it came to that call."""
    with Reader(run.checker):
        sleeper = run.start("--takeover-s", 60, **at_call(call, "signal=SIGSTOP", run))
        try:
            sleeper.stops()
        except (FileNotFoundError, ProcessLookupError, TimeoutError):  # it ended, or never came to that call
            assert sleeper.wait() == 0
            return False
        successor = run.start("--takeover-s", 0.2, "--nonce", "y")
        if wakes_late:
            assert successor.wait() == 0, successor.said()[-1]
        else:
            until(lambda: bool(successor.said()))
        assert sleeper.wakes() in (0, 1, 70)
        assert successor.wait() == 0, successor.said()[-1]
    for job in (successor, sleeper):
        run.checker.hear(job.said())
    run.checker.finished()
    return True


@pytest.mark.row(11)
@pytest.mark.parametrize("wakes_late", [False, True], ids=["beside its successor", "after it"])
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
def test_who_wakes_up_after_a_takeover_changes_nothing(
    jobs: Jobs, tmp_path: Path, with_dest: bool, wakes_late: bool
) -> None:
    whole = Run.at(jobs, tmp_path / "whole", PLAN, *AT_A_TIME, with_dest=with_dest)
    job = whole.start("--takeover-s", 60, trace=CHANGING)
    assert whole.hear(job) == 0
    calls = changes(job, tmp_path / "whole")
    began = next(n for n, call in enumerate(calls) if '{\\"began' in call.text)
    for number, call in enumerate(some(calls[began:], 4)):

        def slept(chosen: Call, at: Path) -> bool:
            run = Run.at(jobs, at, PLAN, *AT_A_TIME, with_dest=with_dest)
            return sleep_after(run, chosen, wakes_late=wakes_late)

        fire(call, tmp_path / str(number), slept, in_turns=True)
