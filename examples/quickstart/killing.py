"""A fault: SIGKILL for one of the sink's writers, wherever it runs."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray._private.state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_TITLE = b"ray::WriterShell"
_DEATH_S = 30.0


def aim_at_a_writer() -> Callable[[], int]:
    """Pick one of this job's writers and start an actor beside it, so that the kill comes at once when it is called.

    Returns:
        The kill; it returns the process id once the process is dead.

    Raises:
        LookupError: there is no writer.
    """
    # ray.util.state does the same, but needs a dashboard
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    for actor in ray._private.state.actors(job_id=job, actor_state_name="ALIVE").values():
        if actor["ActorClassName"].rpartition(".")[2] == "WriterShell":
            beside = NodeAffinitySchedulingStrategy(actor["Address"]["NodeID"], soft=False)
            killer: Any = ray.remote(_Killer).options(num_cpus=0, scheduling_strategy=beside).remote(actor["Pid"])
            return lambda: int(ray.get(killer.kill.remote(), timeout=2 * _DEATH_S))
    raise LookupError("the sink has no writer to kill")


class _Killer:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def kill(self) -> int:
        process = os.pidfd_open(self._pid)  # from here on the number cannot mean another process
        try:
            title = Path(f"/proc/{self._pid}/cmdline").read_bytes()
            if not title.startswith(_TITLE):
                raise LookupError(f"process {self._pid} is no writer: {title[:80]!r}")
            signal.pidfd_send_signal(process, signal.SIGKILL)
            if not select.select([process], [], [], _DEATH_S)[0]:
                raise LookupError(f"process {self._pid} did not die within {_DEATH_S:g} s")
        finally:
            os.close(process)
        return self._pid
