"""A shared filesystem with two mounts: what one has written is looked at, and gone on with, through the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ray_sink.errors import StagingError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.records import Proposal
from ray_sink.staging import Staging
from ray_sink.terms import term_name
from tests.cli.conftest import call
from tests.cli.test_doctor import found, promised
from tests.faults.glusterfs import GlusterFS
from tests.faults.invariants import Folder, Reader
from tests.faults.plan import Plan
from tests.faults.processes import Injection, Jobs
from tests.faults.runs import ALL, CHANGING, Run, at_call, changes

PLAN = Plan(outputs=6, split=True)
AT_A_TIME = ("--batch", 2, "--nonce", "x")
VICTIM = 3
HANGS = "delay_enter=5000000"

pytestmark = pytest.mark.timeout(0 if ALL else 120)


def across(jobs: Jobs, mounts: tuple[Path, Path], name: str, plan: Plan, *more: object) -> tuple[Run, Run]:
    """One run, through either mount; whoever checks looks through the second."""
    first, second = mounts
    run = Run.at(jobs, first / name, plan, *more)
    other = replace(run, staging=second / name / "staging")
    run.checker.staging = Folder(other.staging)
    return run, other


@pytest.mark.slow
def test_the_doctor_finds_that_every_promise_holds(gluster: tuple[Path, Path]) -> None:
    first, second = gluster
    answer = call("doctor", "--staging", first, "--watch-from", second, "--json")
    assert answer.code == 0, answer.out
    staging = found(answer.json, "staging")
    for name in ("filesystem type", "visibility", "atomic rename", "fence elsewhere", "exclusive create", "fsync"):
        assert staging[name] == "ok", answer.out
    assert {promised(answer.json)[promise] for promise in ("P1", "P2", "P3", "P4", "P5", "P7")} == {"holds"}
    assert list(first.iterdir()) == []


@pytest.mark.row(21)
@pytest.mark.slow
def test_the_doctor_finds_the_fence_closed_to_a_mount_that_goes_by_what_it_knew(
    gluster_server: GlusterFS, gluster: tuple[Path, Path], tmp_path: Path
) -> None:
    first, _ = gluster
    with gluster_server.mount(tmp_path / "caching", cached_s=4) as caching:
        answer = call("doctor", "--staging", first, "--watch-from", caching / first.name, "--json")
    fence = next(f for f in answer.json["findings"] if f["name"] == "fence elsewhere")
    assert fence["status"] == "ok", fence
    assert str(caching) in fence["message"]
    assert promised(answer.json)["P3"] == "holds"


@pytest.mark.slow
def test_a_path_that_is_missing_or_another_filesystem_is_named(gluster: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = gluster
    answer = call("doctor", "--staging", first, "--watch-from", tmp_path, "--watch-from", tmp_path / "none", "--json")
    assert answer.code == 1
    said = [f["message"] for f in answer.json["findings"] if f["name"] == "visibility" and f["status"] == "failed"]
    assert len(said) == 2
    assert any(f"looks through {tmp_path}:" in text and "another filesystem" in text for text in said)
    assert any(f"looks through {tmp_path}/none:" in text and "there is no folder" in text for text in said)
    assert {promised(answer.json)[promise] for promise in ("P1", "P2", "P5")} == {"cannot hold"}


@pytest.mark.slow
def test_what_one_mount_publishes_is_read_and_uploaded_through_the_other(
    jobs: Jobs, gluster: tuple[Path, Path]
) -> None:
    run, other = across(jobs, gluster, "run", Plan(outputs=24, split=True), "--writers", 2, "--batch", 2)
    with Reader(run.checker) as reader:
        job = run.start("--upload-from", other.staging, trace="openat,rename")
        assert run.hear(job) == 0, job.said()[-1]
    assert reader.seen > 0
    uploaded = [c for c in job.calls() if c.name == "openat" and f"{other.staging}/runs/" in c.text]
    renamed = [c for c in job.calls() if c.name == "rename" and f"{run.staging}/runs/" in c.text]
    assert min(len(uploaded), len(renamed)) >= 48, (
        "each file was published through one mount and read through the other"
    )
    run.checker.finished()


@pytest.mark.row(1)
@pytest.mark.row(2)
@pytest.mark.row(8)
@pytest.mark.slow
def test_a_driver_killed_before_any_call_is_taken_over_through_the_other_mount(
    jobs: Jobs, gluster: tuple[Path, Path]
) -> None:
    whole, _ = across(jobs, gluster, "whole", PLAN, *AT_A_TIME)
    job = whole.start("--takeover-s", 60, trace=CHANGING)
    assert whole.hear(job) == 0
    calls = changes(job, gluster[0] / "whole")
    missed = []
    chosen = calls[:: max(1, len(calls) // 24)]  # the rest is between the same system calls on one mount
    for number, one in enumerate(chosen):
        run, other = across(jobs, gluster, str(number), PLAN, *AT_A_TIME)
        try:
            killed = run.disturbed(**at_call(one, "signal=KILL", run)).wait()
            other.again("--nonce", "y")
        except BaseException as error:
            error.add_note(f"killed before {one}")
            raise
        if killed == 0:
            missed.append(one)
    assert len(missed) <= 1 + len(chosen) // 20, f"the fault did not fire at {missed}"


@pytest.mark.row(2)
@pytest.mark.row(8)
def test_what_was_decided_and_not_published_is_rolled_forward_through_the_other_mount(
    jobs: Jobs, gluster: tuple[Path, Path]
) -> None:
    run, other = across(jobs, gluster, "run", Plan(outputs=6), "--batch", 1, "--nonce", "x")
    temp = run.staging / f"_ray_sink/run-1/tmp/000001.001/{VICTIM:04d}-x.0"
    job = run.disturbed(inject=[Injection("rename", "signal=KILL", "1")], paths=[temp])
    assert job.wait() == -9
    assert [one.name for one in job.calls()] == ["rename"]
    assert f"{run.plan.key(VICTIM)}.npy" not in run.checker.staging.names(), "it was decided and not published"
    successor = other.again("--nonce", "y")
    (committed,) = successor.said("committed")
    assert run.plan.key(VICTIM) in committed


@pytest.mark.row(12)
@pytest.mark.slow
def test_a_live_owner_is_seen_through_the_other_mount(jobs: Jobs, gluster: tuple[Path, Path]) -> None:
    run, other = across(jobs, gluster, "run", Plan(outputs=6), "--batch", 1, "--nonce", "x")
    temp = run.staging / f"_ray_sink/run-1/tmp/000001.001/{VICTIM:04d}-x.0"
    with Reader(run.checker):
        job = run.start("--takeover-s", 1, inject=[Injection("rename", HANGS, "1")], paths=[temp])
        job.hears("acknowledged", VICTIM)
        second = other.start("--takeover-s", 1, "--nonce", "y")
        assert second.wait() == 1
        assert job.inner.exitcode is None, "the first one hangs still"
        assert run.hear(job) == 0
    assert len(job.injected()) == 1
    assert second.said("error")[0][0] == "RunOwnedError"
    run.checker.finished()


@contextmanager
def looking_for(paths: Sequence[Path]) -> Iterator[None]:
    """Somebody asks for names all the while; a mount that was told that there is none believes so for a time."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for path in paths:
                os.path.exists(path)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.row(21)
@pytest.mark.slow
def test_names_that_the_uploaders_mount_sees_late_are_waited_for(
    jobs: Jobs, gluster_server: GlusterFS, gluster: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = across(jobs, gluster, "run", Plan(outputs=6), "--nonce", "x", "--concurrency", 2)
    for path in run.plan.contents():
        (run.staging / path).parent.mkdir(parents=True, exist_ok=True)
    with gluster_server.mount(tmp_path / "late", absent_s=3) as mount:
        late = mount / run.staging.relative_to(tmp_path / "first")
        with Reader(run.checker), looking_for([late / path for path in run.plan.contents()]):
            job = run.start("--upload-from", late)
            assert run.hear(job) == 0, job.said()[-1]
    retried = {fact["path"] for fact in job.said() if fact.get("event") == "upload_retried"}
    assert retried, "nothing was seen late"
    assert job.said("failed") == []
    run.checker.finished()


@pytest.mark.row(11)
def test_a_fenced_writer_on_a_mount_that_goes_by_old_names_publishes_nothing(
    gluster_server: GlusterFS, gluster: tuple[Path, Path], tmp_path: Path
) -> None:
    """By its cache it finds the folder of its temps, under the old name, wherever that has been moved to."""
    first, _ = gluster
    (first / "staging").mkdir()
    with gluster_server.mount(tmp_path / "caching", cached_s=30) as caching:
        here = Staging(PosixFilesystem(), first / "staging", "run")
        there = Staging(PosixFilesystem(), caching / first.name / "staging", "run")
        here.terms.begin(term_name(1, 1))
        temps = [there.stage(term_name(1, 1), f"{key}.0", f"{key}.npy", [b"old"]) for key in "ab"]
        there.sync_temps(term_name(1, 1))
        late = [Proposal(key, key, (temp,)) for key, temp in zip("ab", temps, strict=True)]
        there.publish(late[:1])  # all that it needs is in its cache
        here.terms.begin(term_name(2, 1))
        assert there.fs.size(there.run_dir / "tmp" / term_name(1, 1)) is None
        assert there.publish(late[1:]) == ["b"]
        with pytest.raises(StagingError):
            there.stage(term_name(1, 1), "c.0", "c.npy", [b"old"])
        assert there.terms.is_fenced(term_name(1, 1))
    assert sorted(path.name for path in (first / "staging").glob("*.npy")) == ["a.npy"]
    assert here.roll_forward(term_name(2, 1), late) == []  # what was decided in time is published by the next life
    assert sorted(path.name for path in (first / "staging").glob("*.npy")) == ["a.npy", "b.npy"]
