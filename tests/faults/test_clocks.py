"""Row 37: the clock jumps while a run is at work. What time passes is told by another clock, and order by none."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.clusters import ClusterJob
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.processes import needs
from tests.faults.s3_bench import ENGINES
from tests.faults.s3_credentials import signed_anew
from tests.faults.s3_jobs import Objects, S3Jobs, run_to
from tests.faults.s3_proxy import Exchange, Proxy, Reply, Request, after
from tests.servers import S3Bucket

SMALL = Plan(outputs=12)
LARGE = Plan(outputs=2, elements=660_000)
DAY_S = 86_400

pytestmark = [pytest.mark.row(37), pytest.mark.timeout(180)]


class WrongClock:
    """A time of day that jobs read instead of the right one; what time passes for them is true.

    Args:
        folder: where its library and its file go.
    """

    def __init__(self, folder: Path) -> None:
        needs("a C compiler (Debian package gcc)", shutil.which("cc") is not None)
        library, self._file = folder / "wall_clock.so", folder / "off_s"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.jump(0)
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(self._file)}

    def jump(self, days: int) -> None:
        """Be off by so many days from this moment."""
        fd = os.open(self._file, os.O_RDWR | os.O_CREAT)  # the same file: jobs have it mapped
        os.pwrite(fd, struct.pack("=q", days * DAY_S), 0)
        os.close(fd)


@pytest.fixture
def clock(tmp_path: Path) -> WrongClock:
    return WrongClock(tmp_path)


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[Proxy]:
    with Proxy(s3_bucket.server) as made:
        yield made


class Jumping:
    """Has the clock jump one way and the other, each time that the server has refused to let it look.

    Attributes:
        refused: for each jump, which operations were.
    """

    def __init__(self, clock: WrongClock, *days: int) -> None:
        self.refused: list[set[str]] = [set() for _ in days]
        self._days = [*days, 0]
        self._clock = clock
        self._lock = threading.Lock()
        self._at = 0
        clock.jump(days[0])

    def __call__(self, exchange: Exchange) -> Reply:
        reply = exchange.forward()
        with self._lock:
            if reply.status == 403 and self._at < len(self.refused):
                self.refused[self._at].add(exchange.request.operation)
                if exchange.request.operation == "HeadObject":
                    self._at += 1
                    self._clock.jump(self._days[self._at])
        return reply


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("days", [-1, 1])
def test_uploads_that_a_store_refuses_for_their_clock_are_made_again_when_it_is_right(
    clock: WrongClock, proxy: Proxy, s3_bucket: S3Bucket, tmp_path: Path, engine: str, days: int
) -> None:
    run = run_to(s3_bucket, proxy, S3Jobs({}), tmp_path, SMALL, "--engine", engine, "--takeover-s", 60)
    begun: list[Jumping] = []

    def jump(request: Request) -> None:
        begun.append(Jumping(clock, days, -days))
        proxy.on("PutObject HeadObject", begun[0], times=None)

    proxy.on("PutObject", after(jump), key="sample_0002.npy")
    environment = {**s3_bucket.server.environment(), **clock.environment}
    with Reader(run.checker), ClusterJob("tests.faults.job", *run.arguments, env=environment) as job:
        assert job.wait() == 0, job.facts[-1]
        run.checker.hear(job.facts)
    assert "PutObject" in begun[0].refused[0]
    assert all("HeadObject" in refused for refused in begun[0].refused)
    assert job.said("failed") == []
    run.checker.finished()


@pytest.mark.parametrize("days", [-1, 1])
def test_who_owns_a_run_and_what_is_cleared_up_is_told_by_no_clock(
    clock: WrongClock, proxy: Proxy, s3_bucket: S3Bucket, tmp_path: Path, days: int
) -> None:
    """This store takes what comes with any date. The clock is wrong one way, then the other, and right for the next."""
    server = s3_bucket.server
    proxy.sign = partial(signed_anew, server)
    jobs = S3Jobs(server.environment())
    run = run_to(s3_bucket, proxy, jobs, tmp_path, LARGE, "--batch", 1)
    let_go = threading.Event()
    held = proxy.on("UploadPart", after(lambda _: let_go.wait(60)), key=".npy", times=None)
    environment = {**server.environment(), **clock.environment}
    clock.jump(days)
    with Reader(run.checker), jobs.stopped():
        with ClusterJob("tests.faults.job", *run.arguments, "--takeover-s", 2, env=environment) as job:
            held.wait(1, deadline_s=60)
            assert {round((at_s - time.time()) / DAY_S) for at_s in job.said("at_s")} == {days}
            clock.jump(-days)
            rival = run.start("--takeover-s", 2)
            assert rival.wait() == 1
            assert rival.said("error")[0][0] == "RunOwnedError", "its counter moves, whatever the clock says"
            assert job.running
            run.checker.hear(job.facts)
        held.lift()
        let_go.set()
        run.checker.unfinished()
        assert Objects(s3_bucket).multiparts(), "one was begun, and who began it is gone"
    run.jobs = S3Jobs(server.environment())
    with run.jobs.stopped():
        run.again()
