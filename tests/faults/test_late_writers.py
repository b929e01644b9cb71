"""A cluster that has no room for a writer's successor for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sink.runtime import starts, steward
from tests.faults.clusters import ClusterRun
from tests.faults.plan import Plan

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.row(7)
def test_until_a_node_with_room_has_come_others_serve_or_who_drains(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, Plan(outputs=200, elements=5_000))
    with run.start(module="tests.faults.apart_job") as job:
        run.finished(job)
        assert job.said("home") == [1], "the new node's writer has the producers of its predecessor back"
        (gone,) = job.said("gone_s")
        assert gone > steward._HANDOVER_S
        (others,) = job.said("others_s")
        assert others < starts._LATE_S, "they are served at once"
        assert job.said("alone") == [20], "it serves for longer where nobody else would"
        assert job.said("writers") == [[1, 1], [1], [1, 1], [1]]
