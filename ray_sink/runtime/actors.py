"""The actors of a run, as the driver holds them. The driver owns every one: what it creates ends with it."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from ray_sink.errors import SinkError
from ray_sink.heart import Heart
from ray_sink.ledger import LedgerOptions
from ray_sink.measures import RunMeasures
from ray_sink.ownership import Claim
from ray_sink.records import MultipartUpload, RunStatus
from ray_sink.runtime import placement
from ray_sink.runtime.calls import result
from ray_sink.runtime.coordinator import Coordinator
from ray_sink.runtime.destination import Destination
from ray_sink.runtime.handle import SinkHandle
from ray_sink.runtime.messages import RunSpec
from ray_sink.runtime.progress import Progress
from ray_sink.runtime.steward import Steward

_COORDINATOR_CALLS = 10_000
"""Calls that wait in the coordinator at a time: most of them only wait for room, for work or for each other."""

_UPLOADERS_S = 10.0
"""How long uploaders may take to end; one that is in the middle of an object is not waited for."""

_MANY = 1000
"""Paths or receipts that still travel inside a call."""


def join_cluster() -> None:
    """Join the cluster that is initialised or named by RAY_ADDRESS; with none, start Ray on this machine."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False)


def current_node() -> str:
    """Id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


class RunActors:
    """Coordinator, writers and uploaders at work, until `stop`.

    Args:
        spec: the run.
        options: what the ledger is told.
        destination: the uploaders; None where staging is the destination.
        claim: the driver's claim.
        progress: whether the driver shows how the run is doing.
    """

    def __init__(
        self, spec: RunSpec, options: LedgerOptions, destination: Destination | None, claim: Claim, *, progress: bool
    ) -> None:
        """Start the coordinator, then the rest.

        Raises:
            SinkError: the ledger could not be opened.
        """
        self.spec = spec
        large = len(options.foreign) + len(options.sealed or ()) > _MANY
        # a restart needs the object again: hold it as long as the actor
        self._options: Any = ray.put(options) if large else options
        self.coordinator: Any = placement.spawn(
            Coordinator,
            spec,
            self._options,
            placement.nodes().store_bytes,
            destination.name if spec.node_local is not None and destination is not None else "",
            max_concurrency=_COORDINATOR_CALLS,
            max_restarts=-1,
            max_task_retries=-1,
            **placement.on_node(current_node()),
        )
        try:
            result(self.coordinator.ready.remote())
        except BaseException:
            ray.kill(self.coordinator)
            raise
        uploaders = destination.uploaders if destination is not None else []
        self._serving = [uploader.serve.remote(self.coordinator, index) for index, uploader in enumerate(uploaders)]
        self._steward = Steward(spec, self.coordinator, uploaders)
        cluster = placement.nodes()
        if cluster.alive == {cluster.head}:
            # producers can only be here: their writers start while the producers do
            self.coordinator.writers.options(max_task_retries=0).remote(cluster.head)
        self._progress = Progress(self.coordinator, spec.info.run_id, shown=progress)
        self._heart = Heart(claim, spec.limits.takeover_s, self.coordinator.fence.remote, note=self._progress.note)

    def handle(self, *, needs_goodbye: bool = True) -> SinkHandle:
        """A producer's end."""
        return SinkHandle(self.spec, self.coordinator, needs_goodbye=needs_goodbye)

    def status(self) -> RunStatus:
        """Where the run stands."""
        status: RunStatus = self._ask("status")
        return status

    def glance(self) -> RunStatus:
        """`status` that waits for no file operation."""
        status: RunStatus = self._ask("glance")
        return status

    def drain(self, timeout_s: float | None) -> RunStatus:
        """Wait until every decided output is committed or failed, or the time is up.

        Raises:
            RunFencedError: a newer owner has the run.
            SinkError: an uploader ended.
        """
        waiting = self.coordinator.drain.remote(timeout_s)
        while True:
            done, _ = ray.wait([waiting, *self._serving], num_returns=1)
            if waiting in done:
                status: RunStatus = self._result(waiting)
                return status
            self._serving = [ref for ref in self._serving if ref not in done]
            for ref in done:
                self._result(ref)

    def open_multiparts(self) -> tuple[MultipartUpload, ...]:
        """What uploaders that died have begun; after `drain`."""
        found: tuple[MultipartUpload, ...] = self._ask("open_multiparts")
        return found

    def measured(self) -> RunMeasures:
        """All that the run's processes have counted. The display ends, and the metrics are up to date."""
        return self._progress.stop()

    def receipts(self) -> Any:
        """An ObjectRef of all receipts, by key."""
        return self.coordinator.receipts.remote()

    def _ask(self, method: str, *args: Any) -> Any:
        return self._result(getattr(self.coordinator, method).remote(*args))

    def _result(self, ref: Any) -> Any:
        if self._heart.fenced is not None:
            raise self._heart.fenced
        try:
            return result(ref)
        except RayError as error:
            raise SinkError(f"the run's actors have ended: {error}. Run the same script again: it resumes") from error

    def stop(self, *, sweep: bool) -> None:
        """End the actors in order: the heart, the coordinator's promises, the writers, the coordinator."""
        self._progress.stop()
        self._heart.stop()
        self._steward.stop_asking()
        try:
            self._ask("stop", sweep and self._heart.fenced is None)
            # an uploader may be freeing what it reported last
            if self._serving:
                ray.wait(self._serving, num_returns=len(self._serving), timeout=_UPLOADERS_S)
        finally:
            self._steward.stop()
            ray.kill(self.coordinator)
