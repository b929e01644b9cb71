"""A filesystem that is late, silent, or wrong about what it did."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.plan import Plan
from tests.faults.processes import Injection, Jobs
from tests.faults.runs import Run

PLAN = Plan(outputs=6)
NAMES = ("--nonce", "x", "--batch", 1)
VICTIM = 3
HANGS = "delay_enter=5000000"


def files_of(run: Run) -> tuple[Path, Path]:
    """Temp and staged file of one output."""
    temp = run.staging / f"_ray_sink/run-1/tmp/000001.001/{VICTIM:04d}-x.0"
    return temp, run.staging / f"{PLAN.key(VICTIM)}.npy"


@pytest.mark.row(19)
@pytest.mark.parametrize("error", [None, "EIO", "ESTALE", "ETIMEDOUT"])
def test_a_rename_that_happened_and_reported_an_error_is_adopted(jobs: Jobs, tmp_path: Path, error: str | None) -> None:
    """Between decision and publishing the test does the rename: what the job's own one says is not what is there."""
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, with_dest=False)
    temp, final = files_of(run)
    journal = run.staging / "_ray_sink/run-1/journal/000001.001"
    # the journal's head, its beginning, the dataset, four decisions
    faults = [Injection("fsync", "signal=SIGSTOP", "7")]
    if error is not None:
        faults.append(Injection("rename", f"error={error}", "1"))
    job = run.start("--takeover-s", 60, inject=faults, trace="rename", paths=[temp, journal])
    job.stops()
    assert f'"{PLAN.key(VICTIM)}"' in journal.read_text(errors="replace")
    os.rename(temp, final)
    job.signal(signal.SIGCONT)
    assert run.hear(job) == 0
    # nobody can tell whether that name is durable: it is given anew
    lie, anew = [call for call in job.calls() if call.name == "rename"]
    assert "= 0" in anew.text
    assert f"= -1 {error or 'ENOENT'}" in lie.text
    assert job.said("failed") == []
    run.checker.finished()


@pytest.mark.row(21)
@pytest.mark.parametrize("error", ["ENOENT", "ESTALE"])
def test_a_staged_file_that_is_seen_late_is_waited_for(jobs: Jobs, tmp_path: Path, error: str) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, "--concurrency", 1)
    _, final = files_of(run)
    job = run.disturbed(inject=[Injection("openat", f"error={error}", "1..4")], paths=[final])
    assert job.wait() == 0
    assert len(job.injected()) == 4
    assert {fact["path"] for fact in job.said() if fact.get("event") == "upload_retried"} == {f"{PLAN.key(VICTIM)}.npy"}
    run.checker.finished()


@pytest.mark.row(21)
@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename"])
def test_a_stale_handle_while_staging_is_met_with_another_try(jobs: Jobs, tmp_path: Path, call: str) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, with_dest=False)
    job = run.disturbed(inject=[Injection(call, "error=ESTALE", "1")], paths=[files_of(run)[0]])
    assert len(job.injected()) == 1
    assert job.wait() == 0
    assert job.said("failed") == []
    run.checker.finished()


@pytest.mark.row(23)
@pytest.mark.parametrize("call", ["openat", "fsync", "rename"])
def test_a_call_that_hangs_is_given_up_by_name_and_the_other_writers_go_on(
    jobs: Jobs, tmp_path: Path, call: str
) -> None:
    run = Run.at(jobs, tmp_path / "run", Plan(outputs=12), *NAMES, with_dest=False)
    job = run.start(
        *("--takeover-s", 60, "--writers", 2, "--storage-wait-s", 1),
        inject=[Injection(call, HANGS, "1")],
        paths=[files_of(run)[0]],
    )
    job.hears("acknowledged", 11, deadline_s=20)
    job.hears("failed", deadline_s=20)
    (failure,) = [fact for fact in job.said() if "failed" in fact]
    assert failure["failed"] == PLAN.key(VICTIM)
    assert "has not answered for 1 s" in failure["error"][1]
    assert [one.name for one in job.calls()][:1] == [call]
    assert job.injected() == [], "and it hangs still"
    assert run.hear(job) == 1
    run.again()
