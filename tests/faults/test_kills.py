"""SIGKILL before each system call of a run in turn, then the run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.plan import Plan
from tests.faults.processes import Call, Jobs
from tests.faults.runs import ALL, CHANGING, Run, changes, fire, some

PLAN = Plan(outputs=3, split=True)
AT_A_TIME = ("--batch", 2, "--nonce", "x")

pytestmark = pytest.mark.timeout(0 if ALL else 120)


def parts_of(jobs: Jobs, folder: Path, *, with_dest: bool) -> tuple[list[Call], list[Call], list[Call]]:
    """The calls of an undisturbed run: before its first output, while it writes and uploads, and when it seals."""
    run = Run.at(jobs, folder, PLAN, *AT_A_TIME, with_dest=with_dest)
    job = run.start("--takeover-s", 60, trace=CHANGING)
    assert run.hear(job) == 0
    run.checker.finished()
    calls = changes(job, folder)
    began = next(n for n, call in enumerate(calls) if '{\\"began' in call.text)
    last = max(n for n, call in enumerate(calls) if '{\\"uploade' in call.text or '{\\"acknow' in call.text)
    assert {"openat", "write", "fsync", "close", "rename", "mkdir"} <= {call.name for call in calls[began:last]}
    return calls[:began], calls[began : last + 1], calls[last + 1 :]


def kill_before_each(jobs: Jobs, folder: Path, calls: list[Call], count: int, *, with_dest: bool) -> None:
    for number, call in enumerate(some(calls, count)):
        # half of the times the producers send everything again, and get the same receipts
        again = ["--again"] if number % 2 else []

        def killed(chosen: Call, at: Path, again: list[str] = again) -> bool:
            run = Run.at(jobs, at, PLAN, *AT_A_TIME, with_dest=with_dest)
            return run.killed_at(chosen, *again)

        # file operations that are waited for are made by whichever thread has nothing to do
        fire(call, folder / str(number), killed, in_turns=True)


@pytest.mark.row(1)
@pytest.mark.row(2)
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
def test_a_run_killed_before_any_call_of_a_landing_converges(jobs: Jobs, tmp_path: Path, with_dest: bool) -> None:
    _, landing, _ = parts_of(jobs, tmp_path / "whole", with_dest=with_dest)
    kill_before_each(jobs, tmp_path, landing, 6, with_dest=with_dest)


@pytest.mark.row(42)
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
def test_a_run_killed_before_any_call_of_its_sealing_has_one_seal(jobs: Jobs, tmp_path: Path, with_dest: bool) -> None:
    _, _, sealing = parts_of(jobs, tmp_path / "whole", with_dest=with_dest)
    kill_before_each(jobs, tmp_path, sealing, 6, with_dest=with_dest)


@pytest.mark.row(8)
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
def test_a_run_killed_before_any_call_of_its_start_begins_anew(jobs: Jobs, tmp_path: Path, with_dest: bool) -> None:
    start, _, _ = parts_of(jobs, tmp_path / "whole", with_dest=with_dest)
    kill_before_each(jobs, tmp_path, start, 3, with_dest=with_dest)
