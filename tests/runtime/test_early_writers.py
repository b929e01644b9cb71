"""The first output must not wait for a process to start."""

from __future__ import annotations

import pytest
import ray
import ray._private.state
import torch

from ray_sink.errors import SinkClosedError
from tests.runtime.conftest import Run
from tests.waiting import until


def writers_alive() -> int:
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = ray._private.state.actors(job_id=job, actor_state_name="ALIVE").values()
    return sum(actor["ActorClassName"].endswith("WriterShell") for actor in actors)


def test_on_a_single_node_a_writer_starts_with_the_sink_and_a_handle_connects_when_told_to(staging_run: Run) -> None:
    with staging_run.sink() as sink:
        until(lambda: writers_alive() == 1, deadline_s=60)
        with sink.handle() as handle:
            handle.prepare()
            until(lambda: handle._connection is not None, deadline_s=60)
        late = sink.handle()
    late.prepare()  # in vain, which the first write says
    with pytest.raises(SinkClosedError):
        late.write("a", torch.zeros(1))
