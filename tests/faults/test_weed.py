"""A shared filesystem whose exclusive create has two winners and whose replace shows torn files: P3 holds on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import call
from tests.cli.test_doctor import found, promised
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.processes import Injection, Jobs
from tests.faults.runs import Run

PLAN = Plan(outputs=24, split=True)


@pytest.mark.slow
def test_the_doctor_says_what_does_not_hold_there(weed: tuple[Path, Path]) -> None:
    first, second = weed
    answer = call("doctor", "--staging", first, "--watch-from", second, "--json")
    assert answer.code == 1
    staging = found(answer.json, "staging")
    assert staging["atomic rename"] == "failed"
    (seen,) = [f["message"] for f in answer.json["findings"] if f["name"] == "atomic rename"]
    assert re.search(r": [1-9]\d* torn", seen), seen
    assert staging["exclusive create"] == "weak"
    promises = promised(answer.json)
    assert promises["P1"] == "cannot hold"
    assert promises["P3"] == promises["P7"] == "weaker", "one driver alone has nobody to race with"
    assert list(first.iterdir()) == []


@pytest.mark.parametrize("with_dest", [True, False], ids=["folder", "staging"])
def test_a_run_of_one_driver_is_exact_all_the_same(
    jobs: Jobs, weed: tuple[Path, Path], tmp_path: Path, with_dest: bool
) -> None:
    run = run_on(weed[0], jobs, tmp_path, with_dest, "--writers", 2, "--batch", 2)
    with Reader(run.checker) as reader:
        job = run.start("--twice")
        assert run.hear(job) == 0, job.said()[-1]
    assert reader.seen > 0
    assert run.checker.finished().outputs == PLAN.outputs


@pytest.mark.row(2)
@pytest.mark.row(8)
@pytest.mark.parametrize("with_dest", [True, False], ids=["folder", "staging"])
def test_a_run_killed_before_it_published_what_was_decided_is_exact_all_the_same(
    jobs: Jobs, weed: tuple[Path, Path], tmp_path: Path, with_dest: bool
) -> None:
    run = run_on(weed[0], jobs, tmp_path, with_dest, "--batch", 2)
    temp = run.staging / "_ray_sink/run-1/tmp/000001.001/0007-x.0"
    job = run.disturbed("--nonce", "x", inject=[Injection("rename", "signal=KILL", "1")], paths=[temp])
    assert job.wait() == -9
    tried = job.calls()
    assert {one.name for one in tried} == {"rename"}
    assert not any(one.text.endswith("= 0") for one in tried), job.log.read_text()
    (committed,) = run.again("--nonce", "y", "--again").said("committed")
    assert len(committed) == 8


def run_on(mount: Path, jobs: Jobs, tmp_path: Path, with_dest: bool, *more: object) -> Run:
    """A run whose staging folder is on the mount, and its destination on this machine's disk."""
    run = Run.at(jobs, mount / "run", PLAN, *more, with_dest=False)
    if not with_dest:
        return run
    moved = Run.at(jobs, tmp_path / "run", PLAN, *more)
    moved.staging.rmdir()
    moved.staging, moved.checker.staging = run.staging, run.checker.staging
    return moved
