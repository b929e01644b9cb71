"""Parts of a Ray cluster die under load, and the bucket holds what the job computed, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from ray_sink.runtime.pool import CALLS
from tests.faults.clusters import ClusterJob, ClusterRun
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SOON = {"RAY_actor_graceful_shutdown_timeout_ms": "2000"}


@pytest.mark.row(5)
@pytest.mark.row(6)
def test_a_models_actor_dies_after_handing_over_and_takes_its_objects_along(tmp_path: Path) -> None:
    """The writers stand still, so that what was handed over is certainly not read when its owner dies."""
    run = ClusterRun(tmp_path, Plan(outputs=60, elements=50_000))
    with run.start() as job, Reader(run.checker):
        job.reaches(6)
        writers = job.pids("ray::WriterShell")
        for pid in writers:
            os.kill(pid, signal.SIGSTOP)
        calls = run.calls
        until(lambda: run.calls >= calls + 2, deadline_s=60)  # the call before the last one has handed over
        died = job.kill("ray::MapWorker")
        for pid in writers:
            os.kill(pid, signal.SIGCONT)
        run.finished(job)
        assert died not in job.pids("ray::MapWorker")
    assert run.calls > 30, "what was lost with it was computed again"


@pytest.mark.row(7)
def test_a_node_with_model_and_writer_is_lost(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=120, elements=20_000), "--nodes", 2, "--actors", 2)
    with run.start("--work-s", 0.3) as job, Reader(run.checker):
        job.reaches(20)
        assert len(job.pids("ray::WriterShell")) == 2, "a writer on each node that has a model"
        job.tell("lose")
        until(lambda: bool(job.said("lost")), deadline_s=60)
        run.finished(job)


@pytest.mark.row(8)
@pytest.mark.row(9)
@pytest.mark.parametrize("what", ["driver", "gcs_server", "raylet"])
def test_the_head_or_the_driver_is_lost_and_the_same_script_goes_on(tmp_path: Path, what: str) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=100, elements=5_000))
    with Reader(run.checker):
        with run.start("--work-s", 0.2, env={"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}) as job:
            job.reaches(20)
            if what == "driver":
                job.kill_driver()
            else:
                job.kill(what)
                assert job.wait(240) != 0
        run.checker.unfinished()
        before = run.calls
        with run.start() as again:
            run.finished(again)
    assert run.calls - before < 50, "what was committed was computed again"


@pytest.mark.row(9)
def test_the_ledgers_process_dies_again_and_again(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=300, elements=2_000), "--work", "handle", "--batch", 2)
    with run.start() as job, Reader(run.checker):
        for decided in (20, 90, 160):
            job.reaches(decided)
            job.kill("ray::Coordinator")
        run.finished(job)


@pytest.mark.row(10)
def test_replies_of_actor_calls_are_lost(tmp_path: Path) -> None:
    lossy = (
        '{"CoreWorkerService.grpc_client.PushTask":'
        '{"num_failures":40,"req_failure_prob":10,"resp_failure_prob":25,"in_flight_failure_prob":10}}'
    )
    run = ClusterRun(tmp_path, Plan(outputs=200), "--work", "handle", "--batch", 4)
    with run.start(env={"RAY_testing_rpc_failure": lossy}) as job, Reader(run.checker):
        run.finished(job)
        (dropped,) = job.said("dropped")
    assert dropped.get("response", 0) >= 5, "what was done and not heard of is asked for again"
    assert dropped.get("request", 0) >= 1


@pytest.mark.row(43)
def test_a_dataset_that_ends_while_writes_wait_loses_nothing(tmp_path: Path) -> None:
    """As many calls of the model as run at a time, and no more: all of them wait for their receipts at the end."""
    run = ClusterRun(tmp_path, Plan(outputs=2 * CALLS, elements=20_000))
    with run.start("--work-s", 0.5, env=SOON) as job:
        job.reaches(2)
        writers = job.pids("ray::WriterShell")
        for pid in writers:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: run.calls == CALLS, deadline_s=60)
        threading.Event().wait(5)  # more than Ray waits for an actor that it lets go
        assert job.running
        assert job.decided < 2 * CALLS
        for pid in writers:
            os.kill(pid, signal.SIGCONT)
        run.finished(job)


@pytest.mark.row(43)
def test_a_naive_sink_loses_outputs_silently_by_the_same(tmp_path: Path) -> None:
    with ClusterJob("tests.faults.naive_job", tmp_path, 20, env=SOON) as job:
        assert job.wait() == 0
        assert job.said("rows") == [20]
    assert len(list(tmp_path.iterdir())) < 20


@pytest.mark.row(44)
@pytest.mark.timeout(1500)
def test_ten_thousand_outputs_while_writers_are_killed_at_random(tmp_path: Path) -> None:
    draw = random.Random(44)
    run = ClusterRun(tmp_path, Plan(outputs=10_000, elements=64), "--work", "handle", "--per-node", 2)
    kills = 0
    with run.start() as job:
        job.reaches(1)
        while job.running and not job.said("sealed") and job.decided < 9_500:
            target = job.decided + draw.randrange(200, 1500)
            until(lambda target=target: job.decided >= target or not job.running, deadline_s=300)  # type: ignore[misc]
            for pid in job.pids("ray::WriterShell")[: draw.randrange(1, 3)]:
                os.kill(pid, signal.SIGKILL)
                kills += 1
        run.finished(job)
    assert kills >= 5
