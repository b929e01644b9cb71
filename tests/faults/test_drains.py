"""Nodes that are announced to go, and go, on one machine without root."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clusters import ClusterRun
from tests.faults.invariants import Reader
from tests.faults.plan import Plan
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.row(7)
def test_every_node_is_drained_and_replaced_one_after_another(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=400, elements=5_000), "--nodes", 2, "--actors", 2)
    with run.start("--work-s", 0.3) as job, Reader(run.checker):
        job.reaches(20)
        old = job.pids("ray::WriterShell")
        assert len(old) == 2
        for turn in (1, 2):
            job.tell("replace")
            until(lambda turn=turn: len(job.said("replaced")) == turn or not job.running, deadline_s=240)  # type: ignore[misc]
            assert len(job.said("replaced")) == turn, (job.facts[-3:], job.complained()[-2000:])
            job.reaches(job.decided + 10)
        now = job.pids("ray::WriterShell")
        assert now
        assert not {*old} & {*now}
        run.finished(job)
