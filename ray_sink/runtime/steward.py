"""The driver's housekeeping: it owns the actors, so it creates the writers, and replaces those that die or leave."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from ray_sink.errors import SinkError, StagingError
from ray_sink.runtime import placement
from ray_sink.runtime.calls import result
from ray_sink.runtime.messages import RosterNews, RosterWish, RunSpec, WriterInfo
from ray_sink.runtime.starts import Starts
from ray_sink.runtime.writing import WriterShell

_log = logging.getLogger("ray_sink")

_ANSWER_S = 180.0
_AHEAD = "ahead"
_LIFE = "life"
_CALLS_AT_ONCE = 4
"""Batches that one writer works on at a time: one encodes while another waits for the disk."""
_UPLOADING_CALLS = 16
"""The same where a call ends only when its batch is uploaded."""
_CLEAR_S = 10.0
_HANDOVER_S = 30.0
"""How long a writer whose node drains stays for its successor where others serve; at most half of the notice."""
_FINISH_S = 15.0
"""What is left of the notice when one goes whose producers nobody else would serve; at most half of it."""


@dataclass(frozen=True, slots=True)
class _Notice:
    """How long a writer whose node drains waits for its successor.

    Attributes:
        others_s: until when, by the monotonic clock, where others would serve its producers.
        alone_s: where nobody would.
    """

    others_s: float
    alone_s: float


def _notice(place: str) -> _Notice:
    now, notice_s = time.monotonic(), placement.notice_s(place)
    return _Notice(now + min(_HANDOVER_S, notice_s / 2), now + max(notice_s - _FINISH_S, notice_s / 2))


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Who finishes what it has.

    Attributes:
        actor: it.
        writer: its name, if it is one; an uploader is started anew.
    """

    actor: Any
    writer: str | None = None


class Steward:
    """A thread that creates writers where the coordinator wants them, and replaces those that died.

    Where a node drains, its writers' successors start, and then they finish what they have and end, as its uploaders
    do: then it has nothing of ours, and can go before its time is up.

    Args:
        spec: the run.
        coordinator: its actor.
        uploaders: theirs; Ray starts them again where they end.
    """

    def __init__(self, spec: RunSpec, coordinator: Any, uploaders: Sequence[Any]) -> None:
        self._spec = spec
        self._coordinator = coordinator
        self._uploaders = uploaders
        self._draining: frozenset[str] = frozenset()
        self._left: frozenset[str] = frozenset()
        self._gone: frozenset[str] = frozenset()
        self._notices: dict[str, _Notice] = {}
        self._leaving: dict[Any, _Leaving] = {}
        self._numbers = itertools.count(1)
        self._writers: dict[str, WriterInfo] = {}
        self._lives: dict[Any, str] = {}
        self._starts = Starts(spec.limits.storage_wait_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray_sink-steward", daemon=True)
        self._thread.start()

    def stop_asking(self) -> None:
        """Begin to stop: no new question to the coordinator, which then answers the last one at once."""
        self._stop.set()

    def stop(self) -> None:
        """End the thread, then the writers; after `stop_asking` and the coordinator's own stop."""
        self._thread.join()
        if self._spec.node_local is not None:
            self._clear()
        for writer in [*self._writers.values(), *self._starts.writers]:
            if writer.actor is not None:
                ray.kill(writer.actor)
        for leaving in self._leaving.values():
            if leaving.writer is not None:
                ray.kill(leaving.actor)

    def _clear(self) -> None:
        """Writers leave nothing on their nodes; what one cannot remove any more, the next one there will."""
        clearing = [writer.actor.clear.remote() for writer in self._writers.values() if writer.actor is not None]
        if clearing:
            ray.wait(clearing, num_returns=len(clearing), timeout=_CLEAR_S)

    def _run(self) -> None:
        try:
            poll = self._poll()
            while True:
                done, _ = ray.wait([poll, *self._starts, *self._leaving, *self._lives], num_returns=1, timeout=1.0)
                self._settle_started(done)
                self._settle_left(done)
                self._settle_dead(done)
                if self._stop.is_set():
                    result(poll, timeout_s=_ANSWER_S)
                    return
                if poll in done:
                    wish: RosterWish = result(poll)
                    self._fulfil(wish)
                if not ray.is_initialized():
                    return
                moved = [self._settle_late(), self._clear_nodes()]
                if (done or any(moved)) and not self._stop.is_set():
                    # what the coordinator answers to an earlier question is not heard any more
                    poll = self._poll()
        except (RayError, SinkError) as error:
            if not self._stop.is_set() and ray.is_initialized():
                # producers learn of it from the coordinator, whose end this is
                _log.error("steward.ended", extra={"run_id": self._spec.info.run_id, "error": str(error)})

    def _poll(self) -> Any:
        leaving = frozenset(leaving.writer for leaving in self._leaving.values() if leaving.writer is not None)
        writers, starting = tuple(self._writers.values()), self._starts.by_node()
        news = RosterNews(writers, starting, leaving=leaving, draining=self._draining, gone=self._gone)
        return self._coordinator.sync_roster.remote(news)

    def _fulfil(self, wish: RosterWish) -> None:
        for name in wish.failed:
            if name in self._writers:
                self._bury(name)
        try:
            cluster = placement.nodes()
        except RayError:
            self._stop.wait(1.0)  # the head is away for a while, and what is wished now will be wished again
            return
        # producers there are gone, too: one that is not asks again
        self._gone = frozenset(wish.missing) - cluster.alive
        for node, count in wish.missing.items():
            for _ in range(0 if node in self._gone else count):
                self._start(node, cluster)

    def _bury(self, name: str) -> None:
        writer = self._writers.pop(name)
        self._notices.pop(name, None)
        if writer.actor is not None:
            # one that only seemed dead must not linger; all that it can still do is harmless
            ray.kill(writer.actor)

    def _start(self, node: str, cluster: placement.Nodes) -> None:
        there = Counter(writer.place for writer in self._writers.values()) + self._starts.by_place()
        place = placement.node_for_writer(node, self._spec.writers, cluster, there)
        options = placement.for_writer(place, self._spec.writers, cluster)
        name = f"writer-{next(self._numbers)}"
        actor = placement.spawn(
            WriterShell,
            name,
            self._spec,
            self._coordinator,
            max_concurrency=_UPLOADING_CALLS if self._spec.node_local is not None else _CALLS_AT_ONCE,
            groups={_AHEAD: 1, _LIFE: 1},
            max_restarts=0,
            **options,
        )
        self._starts.begin(actor.ready.remote(), WriterInfo(name, node, actor=actor), place)

    def _settle_started(self, done: list[Any]) -> None:
        for ref in [ref for ref in self._starts if ref in done]:
            try:
                place = result(ref)
            except SinkError as error:
                writer = self._starts.end(ref)
                ray.kill(writer.actor)
                self._writers[writer.name] = replace(writer, actor=None, error=error)
            except RayError as error:
                # died while it started: the coordinator still wants one
                writer = self._starts.end(ref, failed=True)
                self._writers.pop(writer.name, None)
                _log.warning("writer.start_failed", extra={"writer": writer.name, "error": str(error)})
            else:
                writer = self._starts.end(ref)
                self._writers[writer.name] = replace(writer, place=place)
                self._watch(writer)

    def _watch(self, writer: WriterInfo) -> None:
        self._lives[writer.actor.live.options(concurrency_group=_LIFE).remote()] = writer.name

    def _settle_dead(self, done: list[Any]) -> None:
        """A writer that died is replaced and has nothing reserved any more, whether or not a producer finds it dead."""
        for ref in [ref for ref in self._lives if ref in done]:
            writer = self._writers.get(self._lives.pop(ref))
            if writer is None:
                continue  # it was told to leave, or was found dead before
            try:
                ray.get(ref)
            except ActorUnavailableError:
                self._watch(writer)  # it cannot be reached from here, which is all that is known
            except RayError as error:
                _log.warning("writer.died", extra={"writer": writer.name, "node": writer.node, "error": str(error)})
                self._bury(writer.name)

    def _settle_late(self) -> bool:
        """Whether others have begun to serve producers whose writer does not start, or nobody will."""
        due = self._starts.due(serving=sum(writer.actor is not None for writer in self._writers.values()))
        for start in due.others:
            self._writers[start.writer.name] = replace(start.writer, actor=None)
        for start in due.waiting:
            extra = {"writer": start.writer.name, "node": start.writer.node, "wants": str(self._spec.writers)}
            _log.warning("writer.waiting", extra=extra)
        for start in due.failed:
            ray.kill(start.writer.actor)
            failure = StagingError(
                f"no writer could be placed for node {start.writer.node} within {due.failed_s:.0f} s: no living node"
                f" has room for what WriterOptions asks for ({self._spec.writers}). Ask for less, or start such a node"
            )
            self._writers[start.writer.name] = replace(start.writer, actor=None, error=failure)
        return bool(due.others or due.failed)

    def _clear_nodes(self) -> bool:
        """Take ours off nodes that drain, and what is to start off nodes that are gone; whether there was any."""
        before = self._draining
        try:
            self._draining = placement.draining()
            if not self._draining and not self._starts:
                return bool(before)
            cluster = placement.nodes()
        except RayError:
            return False  # the head is away for a while
        if cluster.able or self._spec.writers.resources or self._spec.writers.label_selector:
            leaving = self._leave_nodes()
        else:
            leaving = False  # nobody could take over: better to the last moment here than not at all
        stuck = self._starts.off(cluster.able)
        for writer in stuck:
            self._writers.pop(writer.name, None)
            ray.kill(writer.actor)
        return bool(leaving or stuck or before != self._draining)

    def _leave_nodes(self) -> bool:
        """Have writers and uploaders on nodes that drain finish; whether anything has changed for the writers."""
        changed = False
        for name, writer in list(self._writers.items()):
            if writer.place not in self._draining:
                continue
            if not writer.going:
                writer = self._writers[name] = replace(writer, going=True)
                self._notices[name] = _notice(writer.place)
                changed = True
            if self._may_go(writer):
                del self._writers[name], self._notices[name]
                writer.actor.leave.options(concurrency_group=_AHEAD).remote()
                self._leaving[writer.actor.finish.remote()] = _Leaving(writer.actor, name)
                changed = True
        if self._draining - self._left:
            for uploader in self._uploaders:
                left = uploader.leave.options(max_task_retries=0).remote(self._draining)
                self._leaving[left] = _Leaving(uploader)
        self._left = self._draining
        return changed

    def _may_go(self, writer: WriterInfo) -> bool:
        staying = [other for other in self._writers.values() if other.actor is not None and not other.going]
        # producers on a node that drains have what others have
        if any(writer.node in self._draining or other.node == writer.node for other in staying):
            return True
        notice = self._notices[writer.name]
        return time.monotonic() > (notice.others_s if staying else notice.alone_s)

    def _settle_left(self, done: list[Any]) -> None:
        for ref in [ref for ref in self._leaving if ref in done]:
            leaving = self._leaving.pop(ref)
            try:
                if result(ref) is not False:
                    if self._spec.node_local is not None and leaving.writer is not None:
                        result(leaving.actor.clear.remote(), timeout_s=_CLEAR_S)
                    ray.kill(leaving.actor, no_restart=leaving.writer is not None)
            except RayError:
                continue  # it is gone with its node
