"""Staging on each node's own disk: whatever dies, and its disk with it, the bucket gets what was computed."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.clusters import ClusterJob, ClusterRun
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.servers import S3Bucket
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def kill_all(job: ClusterJob, name: str) -> None:
    killed = job.pids(name)
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not {*killed} & {*job.pids(name)}, deadline_s=60)


@pytest.mark.row(4)
@pytest.mark.row(9)
@pytest.mark.parametrize("name", ["ray::WriterShell", "ray::UploaderShell", "ray::Coordinator"])
def test_every_process_of_a_kind_dies_again_and_again(tmp_path: Path, s3_bucket: S3Bucket, name: str) -> None:
    plan = Plan(outputs=240, elements=2_000)
    run = ClusterRun(tmp_path, plan, "--node-local", "--work", "handle", "--batch", 2, bucket=s3_bucket)
    with run.start() as job, Reader(run.checker):
        for decided in (20, 90, 160):
            job.reaches(decided)
            kill_all(job, name)
        run.finished(job)


@pytest.mark.row(7)
def test_a_node_is_lost_with_its_disk(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    plan = Plan(outputs=120, elements=20_000)
    run = ClusterRun(tmp_path, plan, "--node-local", "--nodes", 2, "--actors", 2, bucket=s3_bucket)
    with run.start("--work-s", 0.3) as job, Reader(run.checker):
        job.reaches(20)
        assert len(job.pids("ray::WriterShell")) == 2, "a writer on each node that has a model"
        job.tell("lose")
        until(lambda: bool(job.said("lost")), deadline_s=60)
        run.finished(job)


@pytest.mark.row(8)
@pytest.mark.parametrize("what", ["driver", "raylet"])
def test_a_cluster_is_lost_with_all_its_disks_and_the_same_script_goes_on(
    tmp_path: Path, s3_bucket: S3Bucket, what: str
) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=100, elements=5_000), "--node-local", bucket=s3_bucket)
    with Reader(run.checker):
        with run.start("--work-s", 0.2, env={"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}) as job:
            job.reaches(20)
            if what == "driver":
                job.kill_driver()
            else:
                job.kill(what)
                assert job.wait(240) != 0
        shutil.rmtree(run.staging)
        run.staging.mkdir()
        run.checker.unfinished()
        before = run.calls
        with run.start() as again:
            run.finished(again)
    assert run.calls - before < 50, "what was committed was computed again"


@pytest.mark.row(4)
@pytest.mark.row(7)
def test_uploaders_die_while_their_node_drains(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    plan = Plan(outputs=120, elements=20_000)
    run = ClusterRun(tmp_path, plan, "--node-local", "--nodes", 2, "--actors", 2, bucket=s3_bucket)
    with run.start("--work-s", 0.3) as job, Reader(run.checker):
        job.reaches(20)
        uploaders = job.pids("ray::UploaderShell")
        for pid in uploaders:
            os.kill(pid, signal.SIGSTOP)
        calls = run.calls
        until(lambda: run.calls >= calls + 2, deadline_s=60)  # those before have been handed over
        job.tell("replace")
        until(lambda: bool(job.said("draining")), deadline_s=60)
        for pid in uploaders:
            os.kill(pid, signal.SIGKILL)
        run.finished(job)
        assert job.said("replaced") == [1]


@pytest.mark.row(44)
@pytest.mark.timeout(1500)
def test_a_thousand_outputs_while_writers_uploaders_and_the_ledger_are_killed_at_random(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    draw = random.Random(44)
    plan = Plan(outputs=1_000, elements=64)
    arguments = ("--node-local", "--work", "handle", "--batch", 10, "--per-node", 2)
    run = ClusterRun(tmp_path, plan, *arguments, bucket=s3_bucket)
    kills = 0
    with run.start() as job:
        while job.running and not job.said("sealed") and job.decided < 900:
            target = job.decided + draw.randrange(40, 160)
            until(lambda target=target: job.decided >= target or not job.running, deadline_s=300)  # type: ignore[misc]
            name = draw.choice(["ray::WriterShell", "ray::UploaderShell", "ray::Coordinator"])
            for pid in job.pids(name)[: draw.randrange(1, 3)]:
                os.kill(pid, signal.SIGKILL)
                kills += 1
        run.finished(job)
    assert kills >= 5
