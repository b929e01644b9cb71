"""Small disks of their own: full, and beside one another; and a call that writes only a part."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.invariants import Reader
from tests.faults.mounts import resize, tmpfs
from tests.faults.plan import Plan
from tests.faults.processes import Injection, Jobs
from tests.faults.runs import Run
from tests.waiting import until

MiB = 2**20
LARGE = Plan(outputs=4, elements=200_000)  # above what is kept in memory


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    """A disk for local temps with room for three of them."""
    with tmpfs(tmp_path / "local", 5 * MiB) as at:
        yield at


@pytest.mark.row(13)
@pytest.mark.parametrize("filled", [5 * MiB, 4 * MiB], ids=["at the first byte", "in the middle of a file"])
def test_a_full_local_disk_holds_the_writers_back_until_there_is_room(
    jobs: Jobs, tmp_path: Path, local: Path, filled: int
) -> None:
    run = Run.at(jobs, tmp_path / "run", LARGE, "--temp-dir", local, "--writers", 2, "--batch", 1)
    with open(local / "others", "wb") as others:
        others.truncate(0)
        others.write(bytes(filled))
    with Reader(run.checker):
        job = run.start()
        job.hears("event")
        assert "No space left on device" in job.said()[-1]["reason"]
        assert str(local) in job.said()[-1]["reason"]
        assert job.said("acknowledged") == []
        (local / "others").unlink()
        assert run.hear(job) == 0
    assert {fact["event"] for fact in job.said() if "event" in fact} == {"disk_full"}
    assert job.said("failed") == []
    run.checker.finished()
    assert list(local.iterdir()) == []


@pytest.mark.row(13)
@pytest.mark.row(14)
def test_a_full_staging_disk_holds_the_writers_back_until_there_is_room(jobs: Jobs, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "run", 6 * MiB) as at:
        run = Run.at(jobs, at / "run", LARGE, "--batch", 1, with_dest=False)
        with Reader(run.checker):
            job = run.start()
            job.hears("event")
            run.checker.hear(job.said())
            run.checker.unfinished()
            assert len(job.said("acknowledged")) == 3, "three of 1.6 MB have room"
            resize(at, 12 * MiB)
            assert run.hear(job) == 0
        run.checker.finished()


@pytest.mark.row(13)
@pytest.mark.row(14)
def test_what_waits_for_room_longer_than_it_may_is_failed_by_name(jobs: Jobs, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "run", 6 * MiB) as at:
        run = Run.at(jobs, at / "run", LARGE, "--batch", 1, "--storage-wait-s", 1, with_dest=False)
        with Reader(run.checker):
            job = run.start()
            assert run.hear(job) == 1
        assert job.said("acknowledged") == [LARGE.key(number) for number in range(3)], "three of 1.6 MB have room"
        (failure,) = [fact for fact in job.said() if "failed" in fact]
        assert failure["failed"] == LARGE.key(3)
        assert "No space left on device" in failure["error"][1]
        assert "(waited 1 s for room)" in failure["error"][1]
        resize(at, 12 * MiB)
        run.again()


@pytest.mark.row(14)
def test_a_disk_that_is_full_for_the_journal_too_ends_the_run_and_it_resumes(jobs: Jobs, tmp_path: Path) -> None:
    plan = Plan(outputs=40, elements=200)
    with tmpfs(tmp_path / "run", 96 * 1024) as at:
        run = Run.at(jobs, at / "run", plan, "--batch", 2, with_dest=False)
        journal = run.staging / "_ray_sink/run-1/journal/000001.001"
        job = run.disturbed(inject=[Injection("write", "error=ENOSPC", "8")], paths=[journal])
        assert job.wait() == 70
        assert len(job.injected()) == 1
        resize(at, 4 * MiB)
        run.again()


@pytest.mark.row(18)
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
def test_three_devices_and_every_landing_is_atomic(jobs: Jobs, tmp_path: Path, local: Path, with_dest: bool) -> None:
    with tmpfs(tmp_path / "run/staging", 16 * MiB) as staging, tmpfs(tmp_path / "run/dest", 16 * MiB) as dest:
        run = Run.at(jobs, tmp_path / "run", LARGE, "--temp-dir", local, "--batch", 2, with_dest=with_dest)
        assert len({folder.stat().st_dev for folder in (local, staging, dest)}) == 3
        with Reader(run.checker) as reader:
            job = run.start("--writers", 2, trace="rename,renameat,renameat2,link,sendfile,copy_file_range")
            assert run.hear(job) == 0
        assert reader.seen > 0
        assert [call for call in job.calls() if "EXDEV" in call.text] == [], "nothing is renamed across devices"
        run.checker.finished()


@pytest.mark.row(17)
def test_a_short_write_is_gone_on_with(jobs: Jobs, tmp_path: Path) -> None:
    """The kernel cuts the write at the process's own file size limit, which is lifted before the next one."""
    plan = Plan(outputs=1, elements=20_000)
    run = Run.at(jobs, tmp_path / "run", plan, "--nonce", "x", with_dest=False)
    temp = run.staging / "_ray_sink/run-1/tmp/000001.001/0000-x.0"
    limit, most = 2**16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    job = run.start(
        inject=[Injection("write", "signal=SIGSTOP", "1")],
        paths=[temp],
        first=lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, most)),
    )
    job.stops()
    until(lambda: temp.stat().st_size == limit)
    resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (most, most))
    job.signal(signal.SIGCONT)
    assert run.hear(job) == 0
    first, second = [call.text for call in job.calls() if call.name == "write"]
    assert first.endswith(f"= {limit}")
    assert second.endswith(f"= {len(next(iter(plan.contents().values()))) - limit}")
    run.checker.finished()
