"""The driver's housekeeping: it owns the actors, so it creates the writers, and replaces those that died."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from ray_sink.errors import SinkError, StagingError
from ray_sink.runtime import placement
from ray_sink.runtime.calls import result
from ray_sink.runtime.messages import RosterWish, RunSpec, WriterInfo
from ray_sink.runtime.writing import WriterShell

_log = logging.getLogger("ray_sink")

_START_S = 180.0
_CALLS_AT_ONCE = 4
"""Batches that one writer works on at a time: one encodes while another waits for the disk."""


@dataclass(frozen=True, slots=True)
class _Starting:
    writer: WriterInfo
    deadline: float


class Steward:
    """A thread that creates writers where the coordinator wants them, and replaces those that died."""

    def __init__(self, spec: RunSpec, coordinator: Any) -> None:
        self._spec = spec
        self._coordinator = coordinator
        self._numbers = itertools.count(1)
        self._writers: dict[str, WriterInfo] = {}
        self._starting: dict[Any, _Starting] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray_sink-steward", daemon=True)
        self._thread.start()

    def stop_asking(self) -> None:
        """Begin to stop: no new question to the coordinator, which then answers the last one at once."""
        self._stop.set()

    def stop(self) -> None:
        """End the thread, then the writers; after `stop_asking` and the coordinator's own stop."""
        self._thread.join()
        for writer in [*self._writers.values(), *(start.writer for start in self._starting.values())]:
            if writer.actor is not None:
                ray.kill(writer.actor)

    def _run(self) -> None:
        try:
            poll = self._poll()
            while True:
                done, _ = ray.wait([poll, *self._starting], num_returns=1, timeout=1.0)
                self._settle_started(done)
                if self._stop.is_set():
                    result(poll, timeout_s=_START_S)
                    return
                if poll in done:
                    wish: RosterWish = result(poll)
                    self._fulfil(wish)
                if not ray.is_initialized():
                    return
                if done and not self._stop.is_set():
                    poll = self._poll()
        except (RayError, SinkError) as error:
            if not self._stop.is_set() and ray.is_initialized():
                # producers learn of it from the coordinator, whose end this is
                _log.error("steward.ended", extra={"run_id": self._spec.info.run_id, "error": str(error)})

    def _poll(self) -> Any:
        starting: dict[str, int] = {}
        for start in self._starting.values():
            starting[start.writer.node] = starting.get(start.writer.node, 0) + 1
        return self._coordinator.sync_roster.remote(list(self._writers.values()), starting)

    def _fulfil(self, wish: RosterWish) -> None:
        for name in wish.failed:
            gone = self._writers.pop(name, None)
            if gone is not None:
                # one that only seemed dead must not linger; all that it can still do is harmless
                ray.kill(gone.actor)
        cluster = placement.nodes()
        for node, count in wish.missing.items():
            for _ in range(count):
                self._start(node, cluster)

    def _start(self, node: str, cluster: placement.Nodes) -> None:
        options = placement.for_writer(node, self._spec.writers, cluster)
        name = f"writer-{next(self._numbers)}"
        actor = placement.spawn(
            WriterShell, self._spec, self._coordinator, max_concurrency=_CALLS_AT_ONCE, max_restarts=0, **options
        )
        start = _Starting(WriterInfo(name, node, actor), time.monotonic() + _START_S)
        self._starting[actor.ready.remote()] = start

    def _settle_started(self, done: list[Any]) -> None:
        for ref in [ref for ref in self._starting if ref in done]:
            writer = self._starting.pop(ref).writer
            try:
                result(ref)
            except SinkError as error:
                ray.kill(writer.actor)
                self._writers[writer.name] = WriterInfo(writer.name, writer.node, error=error)
            except RayError as error:
                # died while it started: the coordinator still wants one
                _log.warning("writer.start_failed", extra={"writer": writer.name, "error": str(error)})
            else:
                self._writers[writer.name] = writer
        for ref, start in list(self._starting.items()):
            if time.monotonic() > start.deadline:
                del self._starting[ref]
                ray.kill(start.writer.actor)
                late = StagingError(
                    f"no writer could be placed for node {start.writer.node} within {_START_S:.0f} s: no living node"
                    f" has what WriterOptions asks for ({self._spec.writers}). Ask for less, or start such a node"
                )
                self._writers[start.writer.name] = WriterInfo(start.writer.name, start.writer.node, error=late)
