"""Errors that a disk gives, at the call and the file where it hurts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.plan import Plan
from tests.faults.processes import Injection, Jobs, Process
from tests.faults.runs import Run

PLAN = Plan(outputs=6)
VICTIM = 3
NAMES = ("--nonce", "x", "--batch", 1)
TERM = "000001.001"


@pytest.fixture(params=[False, True], ids=["staging", "folder"])
def run(jobs: Jobs, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    return Run.at(jobs, tmp_path / "run", PLAN, *NAMES, with_dest=request.param)


def temp_of(run: Run, number: int, attempt: str = "0") -> Path:
    """Where an output is staged; which names its attempts have is told to the job."""
    return run.staging / "_ray_sink/run-1/tmp" / TERM / f"{number:04d}-x.{attempt}"


def final_of(run: Run, number: int) -> Path:
    return run.staging / f"{PLAN.key(number)}.npy"


def journal_of(run: Run) -> Path:
    return run.staging / "_ray_sink/run-1/journal" / TERM


def on_victim(run: Run, *faults: Injection, trace: str | None = None) -> Process:
    """The run with faults that hit the temp of one output only."""
    return run.disturbed(inject=faults, trace=trace, paths=[temp_of(run, VICTIM)])


def calls_on(job: Process, path: Path) -> list[str]:
    """The calls of a traced job on `path`, with what was injected."""
    return [
        f"{call.name} injected" if call.injected else call.name for call in job.calls() if f"{path.name}>" in call.text
    ]


@pytest.mark.row(14)
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("call", ["fsync", "close"])
def test_a_disk_that_is_full_only_at_fsync_or_close_is_not_believed(run: Run, call: str, error: str) -> None:
    job = on_victim(run, Injection(call, f"error={error}", "1"))
    assert len(job.injected()) == 1
    assert job.wait() == 0, "there is room again: another temp takes the place of the one that failed"
    assert job.said("failed") == []
    run.again()


@pytest.mark.row(15)
def test_after_an_error_of_write_a_new_temp_is_written(run: Run) -> None:
    job = on_victim(run, Injection("write", "error=EIO", "1"), trace="openat,fsync,close,unlink")
    assert calls_on(job, temp_of(run, VICTIM))[:3] == ["openat", "write injected", "close"]
    assert job.wait() == 0
    run.again()


@pytest.mark.row(15)
def test_an_output_that_cannot_be_written_at_all_is_failed_by_name(run: Run) -> None:
    job = run.disturbed(
        inject=[Injection("write", "error=EIO")], paths=[temp_of(run, VICTIM, again) for again in ("0", "0~1", "0~2")]
    )
    assert len(job.injected()) == 3
    assert job.wait() == 1
    assert job.said("failed") == [PLAN.key(VICTIM)]
    assert len(job.said("acknowledged")) == PLAN.outputs - 1
    run.again()


@pytest.mark.row(16)
def test_after_an_error_of_fsync_the_file_is_given_up_and_never_synced_again(run: Run) -> None:
    job = on_victim(run, Injection("fsync", "error=EIO", "1"), trace="openat,write,close,rename,unlink")
    names = calls_on(job, temp_of(run, VICTIM))
    assert names == ["openat", "write", "fsync injected", "close"]
    assert [call.name for call in job.calls()][-1] == "unlink"
    assert job.wait() == 0
    run.again()


@pytest.mark.row(16)
def test_a_journal_whose_fsync_failed_ends_its_ledger_and_is_never_synced_again(run: Run) -> None:
    # the head, the beginning, the dataset, three decisions
    job = run.disturbed(inject=[Injection("fsync", "error=EIO", "6")], trace="write", paths=[journal_of(run)])
    assert job.wait() == 70
    assert calls_on(job, journal_of(run))[-1] == "fsync injected"
    assert 0 < len(job.said("acknowledged")) < PLAN.outputs
    run.again("--again")


@pytest.mark.row(16)
def test_names_in_a_folder_that_cannot_be_synced_are_not_acknowledged_and_are_given_anew(run: Run) -> None:
    """A second fsync that says yes proves nothing about names that were there before the first one."""
    final = final_of(run, VICTIM)
    job = run.disturbed(inject=[Injection("fsync", "error=EIO", "1+")], paths=[final.parent])
    assert job.injected()
    assert job.wait() == 1
    assert job.said("failed") == [PLAN.key(number) for number in (0, VICTIM)], "the others have folders of their own"
    assert final.exists()
    again = run.start("--takeover-s", 0.1, trace="rename,fsync")
    assert run.hear(again) == 0
    calls = [call.name for call in again.calls() if str(final) in call.text or f"{final.parent}>" in call.text]
    assert calls[:2] == ["rename", "fsync"]
    run.checker.finished()


@pytest.mark.row(16)
def test_a_folder_whose_own_name_cannot_be_synced_is_made_anew(run: Run) -> None:
    folder = final_of(run, VICTIM).parent
    job = run.disturbed(inject=[Injection("fsync", "error=EIO", "1+")], paths=[folder.parent])
    assert job.injected()
    assert job.wait() == 1
    assert set(job.said("failed")) == set(PLAN.keys())
    assert not folder.exists()
    run.again()


@pytest.mark.row(17)
@pytest.mark.parametrize("call", ["openat", "write", "fsync", "close"])
def test_a_call_that_a_signal_interrupted_is_made_again(run: Run, call: str) -> None:
    job = on_victim(run, Injection(call, "error=EINTR", "1..3"))
    assert job.injected()
    assert job.wait() == 0
    assert job.said("failed") == []
    run.again()


@pytest.mark.row(20)
@pytest.mark.parametrize("error", ["EIO", "ESTALE", "EBUSY"])
def test_a_rename_that_did_not_happen_is_made_again(run: Run, error: str) -> None:
    job = on_victim(run, Injection("rename", f"error={error}", "1"))
    first, second = [call for call in job.calls() if call.name == "rename"]
    assert (first.injected, second.injected) == (True, False)
    assert job.wait() == 0
    assert job.said("failed") == []
    run.again()


@pytest.mark.row(20)
def test_a_rename_that_never_works_leaves_an_output_that_the_next_life_publishes(run: Run) -> None:
    job = on_victim(run, Injection("rename", "error=EIO"))
    assert job.wait() == 1
    assert len(job.injected()) > 1
    assert PLAN.key(VICTIM) in job.said("failed")
    run.again()
    assert job.said("failed") == [PLAN.key(VICTIM)]
