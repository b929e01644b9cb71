"""Rows 3, 4, 24, 36 and 39 over whole runs: jobs in processes of their own, killed, cut off, and run again."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_sink.manifest import Seal, run_path
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.faults.processes import KILLED, Process
from tests.faults.runs import ALL, Run
from tests.faults.s3_jobs import Objects, S3Jobs, run_to
from tests.faults.s3_proxy import Action, Exchange, Proxy, Reply, Request, answer, cut_body, lost, no_answer
from tests.faults.test_store_storms import Rate
from tests.servers import S3Bucket
from tests.waiting import until

SMALL = Plan(outputs=12)
LARGE = Plan(outputs=2, elements=660_000)

SOON = ("--takeover-s", 1)
"""A dead owner is given up soon, and a living one does not keep the server busy with its beats."""
ONE_AT_A_TIME = ("--concurrency", 1)
"""Who dies while another upload begins may not have heard its id: nobody can know it as ours then."""

pytestmark = pytest.mark.timeout(0 if ALL else 120)


@dataclass
class Cluster:
    """What a run needs, and what it can be disturbed with."""

    proxy: Proxy
    objects: Objects
    run: Callable[..., Run]


@pytest.fixture
def cluster(s3_bucket: S3Bucket, tmp_path: Path) -> Iterator[Cluster]:
    jobs = S3Jobs(s3_bucket.server.environment())
    with Proxy(s3_bucket.server) as proxy, jobs.stopped():

        def run(plan: Plan, *more: object) -> Run:
            return run_to(s3_bucket, proxy, jobs, tmp_path / os.urandom(4).hex(), plan, *more)

        yield Cluster(proxy, Objects(s3_bucket), run)


class Killer:
    """Kills a job when the proxy tells it to; once."""

    def __init__(self) -> None:
        self.job: Process | None = None
        self._there = threading.Event()

    def aims_at(self, job: Process) -> None:
        self.job = job
        self._proc = Path(f"/proc/{job.pid}")
        self._there.set()

    def __call__(self) -> None:
        assert self._there.wait(30)
        assert self.job is not None
        self.job.signal(signal.SIGKILL)
        # the test itself waits for its exit status, which there is once
        until(lambda: not self._proc.exists())

    def before(self, exchange: Exchange) -> Reply:
        """The request has come, and its client dies before the server hears of it."""
        exchange.body()
        self()
        exchange.reset()

    def after(self, exchange: Exchange) -> Reply:
        """The server has done it, and the client dies before it is told."""
        exchange.forward()
        self()
        exchange.reset()


def killed(run: Run, killer: Killer) -> Process:
    with Reader(run.checker):
        job = run.start("--takeover-s", 60)
        killer.aims_at(job)
        assert run.hear(job) == KILLED
    return job


@pytest.mark.row(3)
def test_an_uploader_that_dies_between_two_parts_leaves_an_upload_that_is_aborted(cluster: Cluster) -> None:
    run, killer = cluster.run(LARGE, *ONE_AT_A_TIME), Killer()
    theirs = cluster.objects.begin_multipart("runs/part_0/sample_0000.npy")
    fault = cluster.proxy.on("UploadPart", killer.before, key=".npy")
    killed(run, killer)
    assert fault.fired == 1
    assert len(cluster.objects.multiparts()) == 2
    run.again(*SOON)
    assert cluster.objects.multiparts() == [theirs]


@pytest.mark.row(4)
@pytest.mark.parametrize(
    ("plan", "operation"), [(SMALL, "PutObject"), (LARGE, "CompleteMultipartUpload")], ids=["put", "parts"]
)
def test_an_object_that_was_complete_when_its_uploader_died_is_adopted_by_looking(
    cluster: Cluster, plan: Plan, operation: str
) -> None:
    run, killer = cluster.run(plan, *ONE_AT_A_TIME), Killer()
    name = "runs/part_1/sample_0001.npy"
    fault = cluster.proxy.on(operation, killer.after, key=name)
    killed(run, killer)
    assert fault.fired == 1
    before = cluster.objects.client.head_object(Bucket=cluster.objects.bucket, Key=name)
    cluster.proxy.forget()
    run.again(*SOON)
    after = cluster.objects.client.head_object(Bucket=cluster.objects.bucket, Key=name)
    assert (after["LastModified"], after["Metadata"]) == (before["LastModified"], before["Metadata"])
    # refused once, looked at, and believed
    assert [r.operation for r in cluster.proxy.seen(f"{operation} HeadObject", name)][:2] == [operation, "HeadObject"]
    assert len(cluster.proxy.seen(operation, name)) == 1
    assert cluster.objects.multiparts() == []


@pytest.mark.row(36)
def test_while_the_store_is_away_staging_takes_what_comes_and_then_all_drains(cluster: Cluster) -> None:
    run = cluster.run(SMALL)
    fault = cluster.proxy.on("PutObject", lambda _: cluster.proxy.partition("refusing"), key="sample_0003.npy")
    with Reader(run.checker):
        job = run.start("--takeover-s", 60)
        fault.wait()
        job.hears("acknowledged", SMALL.outputs)
        uploaded = len(job.said("uploaded"))
        cluster.proxy.heal()
        assert run.hear(job) == 0
    assert uploaded < SMALL.outputs
    run.checker.finished()


@pytest.mark.row(36)
def test_a_store_that_stays_away_is_waited_for_within_bounds_and_the_same_run_again_drains(cluster: Cluster) -> None:
    run = cluster.run(SMALL)
    fault = cluster.proxy.on("PutObject", lambda _: cluster.proxy.partition("refusing"), key="sample_0003.npy")
    job = run.start("--takeover-s", 60, "--retry-s", 1)
    assert job.wait() == 1
    assert fault.fired == 1
    run.checker.hear(job.said())
    acknowledged, uploaded = set(job.said("acknowledged")), set(job.said("uploaded"))
    assert acknowledged == set(SMALL.keys())
    ((kind, message),) = job.said("error")
    assert kind == "OutputsFailed"
    assert all(key in message for key in acknowledged - uploaded)
    cluster.proxy.heal()
    run.again(*SOON)


@pytest.mark.row(25)
@pytest.mark.row(28)
@pytest.mark.parametrize("action", [answer(503, "SlowDown"), lost(answer(500, "InternalError"))], ids=["503", "lost"])
def test_each_request_for_claims_and_seal_may_fail_for_now(cluster: Cluster, action: Action) -> None:
    run = cluster.run(SMALL)
    met: set[tuple[str, str]] = set()

    def is_first(request: Request) -> bool:
        about_the_run = request.operation == "ListObjectsV2" or request.key.startswith("_ray_sink/")
        name = (request.operation, request.key)
        if not about_the_run or "/probe-" in f"{request.key}{request.query.get('prefix')}" or name in met:
            return False
        met.add(name)
        return True

    fault = cluster.proxy.on("", action, when=is_first, times=None)
    with Reader(run.checker):
        job = run.start("--takeover-s", 60)
        assert run.hear(job) == 0, job.said()[-1]
    assert fault.fired == len(met)
    # the claim, its beat, its end, the seal and its manifest
    assert len([key for operation, key in met if operation == "PutObject"]) == 5
    run.checker.finished()


CONFLICTS = {"runs/part_1/sample_0001.npy": b"another run's", "runs/part_2/sample_0005.npy": b"and another's"}


def ended(run: Run, *more: object) -> tuple[int, Process]:
    job = run.start(*SOON, *more)
    code = job.wait()
    return code, job


@pytest.mark.row(39)
def test_another_runs_output_is_a_conflict_that_is_named(cluster: Cluster) -> None:
    for name, data in CONFLICTS.items():
        cluster.objects.put(name, data)
    run = cluster.run(SMALL, "--on-conflict", "error")
    code, job = ended(run)
    assert code == 1
    failed = {fact["failed"]: fact["error"][0] for fact in job.said() if "failed" in fact}
    assert failed == {name.removesuffix(".npy"): "DestinationConflict" for name in CONFLICTS}
    there = {name: cluster.objects.read(name) for name in cluster.objects.names() if "_ray_sink" not in name}
    assert there == SMALL.contents() | CONFLICTS
    assert run_path("run-1", "_SUCCESS") not in cluster.objects.names()


@pytest.mark.row(39)
@pytest.mark.parametrize("choice", ["keep", "replace"])
def test_another_runs_output_is_kept_or_replaced_and_counted(cluster: Cluster, choice: str) -> None:
    for name, data in CONFLICTS.items():
        cluster.objects.put(name, data)
    run, killer = cluster.run(SMALL, "--on-conflict", choice), Killer()
    # counts survive the death of whoever counted
    fault = cluster.proxy.on("PutObject", killer.after, key="sample_0008.npy")
    job = run.start("--takeover-s", 60)
    killer.aims_at(job)
    assert job.wait() == KILLED
    assert fault.fired == 1
    assert ended(run)[0] == 0
    there = {name: cluster.objects.read(name) for name in cluster.objects.names() if "_ray_sink" not in name}
    assert there == SMALL.contents() | (CONFLICTS if choice == "keep" else {})
    seal = Seal.from_json(cluster.objects.read(run_path("run-1", "_SUCCESS")))
    assert (seal.conflicts.kept, seal.conflicts.replaced) == ((2, 0) if choice == "keep" else (0, 2))
    assert seal.outputs == SMALL.outputs


@pytest.mark.slow
@pytest.mark.row(24)
@pytest.mark.row(3)
@pytest.mark.row(4)
@pytest.mark.parametrize("seed", range(5))
def test_storms_lies_and_kills_at_random_moments(cluster: Cluster, seed: int) -> None:
    draw = random.Random(seed)
    plan = Plan(outputs=300) if seed % 2 else Plan(outputs=12, elements=700_000)
    run = cluster.run(plan, "--concurrency", 8)
    too_fast = Rate(40, 8) if seed % 2 else Rate(2, 2)

    def stormy(request: Request) -> bool:
        # a run that finds no room to begin in never comes to what is tried here
        return "_ray_sink" not in request.key and too_fast(request)

    storm = cluster.proxy.on("PutObject UploadPart", answer(503, "SlowDown"), when=stormy, times=None)
    # so often that some are told in any order of threads
    share = 0.02 if seed % 2 else 0.1
    lies = [no_answer, cut_body, lost(), lost(answer(500)), answer(200, "InternalError"), lost(answer(412))]
    told = [
        cluster.proxy.on("PutObject UploadPart CompleteMultipartUpload", lie, when=often(draw, share), times=None)
        for lie in lies
    ]
    kills = 0
    for _ in range(8):
        with Reader(run.checker):
            job = run.start(*SOON)
            if reaches(job, cluster.proxy, len(cluster.proxy.requests) + draw.randrange(20, 150)):
                job.signal(signal.SIGKILL)
                kills += 1
            run.hear(job)
    storm.lift()
    for fault in told:
        fault.lift()
    run.again(*SOON)
    assert kills
    assert storm.fired
    assert sum(fault.fired for fault in told)
    # who dies before it hears the id of an upload leaves an empty one, which nobody can know as ours
    assert cluster.objects.parts_left() == []


def often(draw: random.Random, share: float) -> Callable[[Request], bool]:
    return lambda request: "_ray_sink" not in request.key and draw.random() < share


def reaches(job: Process, proxy: Proxy, requests: int) -> bool:
    """Whether so many requests have come before the job ended."""
    until(lambda: len(proxy.requests) > requests or job.inner.exitcode is not None, deadline_s=120)
    return job.inner.exitcode is None
