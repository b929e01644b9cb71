"""A cluster that has no room for a writer's successor for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clusters import ClusterRun
from tests.faults.plan import Plan

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.row(7)
def test_others_serve_until_a_node_with_room_has_come(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=60, elements=5_000))
    with run.start(module="tests.faults.apart_job") as job:
        run.finished(job)
        assert job.said("produced") == [20, 20, 20]
        first, alone, again = job.said("writers")
    assert (first, alone, again) == ([1, 1], [1], [1, 1])
