"""The writer actor: a shell around `ray_sink.writer.Writer` that asks the coordinator."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ray_sink.config import DictMode
from ray_sink.errors import RunFencedError, SinkError, StagingError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.formats import resolve
from ray_sink.formats.values import encoded_bound_bytes
from ray_sink.meters import MeasuredPublishing, WriterMeter, process_name
from ray_sink.patience import Patience
from ray_sink.publishing import DecidedPublishing, Publishing
from ray_sink.records import Decision, FileRecord, Proposal, Receipt
from ray_sink.runtime.beside import Beside
from ray_sink.runtime.calls import result
from ray_sink.runtime.messages import RunSpec, Submission, WriteReply
from ray_sink.staging import Staging
from ray_sink.writer import Output, Writer

if TYPE_CHECKING:
    from ray_sink.runtime.payload import Packed

_LIVES = 3
"""How many restarts of the ledger one batch may meet before it is handed back."""


class WriterShell:
    """Stages batches, has them decided, publishes the winners. Everything that it can do late is harmless."""

    def __init__(self, name: str, spec: RunSpec, coordinator: Any) -> None:
        # not with this module: whoever is handed a writer's handle loads that, the coordinator too, and needs no torch
        from ray_sink.runtime import payload

        self._payload = payload
        self._name = name
        self._spec = spec
        self._coordinator = coordinator
        self._staging = Staging(PosixFilesystem(), Path(spec.info.staging), spec.info.run_id)
        self._lock = threading.Lock()
        self._meter = WriterMeter(process_name())
        self._changed = threading.Condition()
        self._calls = itertools.count()
        self._running: set[int] = set()
        self._leaving = False
        self._term = ""
        self._writer: Writer[Any, Receipt] | None = None
        self._beside: Beside | None = None

    def ready(self) -> str:
        """Check the staging folder: that this node sees what the ledger wrote into it, or has one of its own.

        Returns:
            The node's id.

        Raises:
            StagingError: it does not, or has none.
        """
        term = result(self._coordinator.ready.remote())
        node = str(ray.get_runtime_context().get_node_id())
        if self._spec.node_local is not None:
            try:
                self._beside = Beside(self._spec, self._coordinator, node)
            except StagingError as error:
                raise StagingError(f"node {node} ({socket.gethostname()}): {error}") from error
            return node
        journal = self._staging.journal_dir / term
        if not journal.exists():
            raise StagingError(
                f"node {node} ({socket.gethostname()}) does not see {journal}: the staging folder must be on a"
                " filesystem that all nodes mount at the same path (with several nodes, a local folder is none, but"
                " see ray_sink.NodeLocal)"
            )
        return node

    def clear(self) -> None:
        """Leave nothing on this node; after `finish`."""
        if self._beside is not None:
            self._beside.folder.clear()

    def live(self) -> None:
        """Never return: whoever waits for it learns when this actor is dead. In a group of its own."""
        threading.Event().wait()

    def leave(self) -> None:
        """The node drains: tell producers so with every reply. In front of what waits to be written."""
        self._leaving = True

    def finish(self) -> None:
        """Wait for what came in before this call; what comes later goes to others when this actor is gone."""
        with self._changed:
            held = set(self._running)
            self._changed.wait_for(lambda: not held & self._running)

    def write(self, submission: Submission, payload: Packed) -> WriteReply:
        """Write one batch. The payload is read before anything else: it survives its owner from here on."""
        call = next(self._calls)
        with self._changed:
            self._running.add(call)
        try:
            outcomes, credit_wanted = self._write(submission, payload)
        finally:
            with self._changed:
                self._running.remove(call)
                self._changed.notify_all()
        return WriteReply(outcomes, credit_wanted, self._leaving)

    def _write(self, submission: Submission, payload: Packed) -> tuple[tuple[Receipt | Exception, ...], bool]:
        values = self._payload.unpack(payload)
        outcomes: list[Receipt | SinkError | None] = [None] * len(values)
        left = list(range(len(values)))
        credit_wanted = False
        # what they may be as files, headers and all: staging must not pass its limit
        bound_bytes = sum(map(encoded_bound_bytes, values))
        term = self._term or result(self._coordinator.ready.remote())
        for life in range(_LIVES):
            writer = self._writer_for(term)
            batch = f"{submission.attempts[left[0]]}.{life}"
            outputs = [
                Output(submission.keys[i], values[i], f"{submission.attempts[i]}.{life}", submission.sources[i])
                for i in left
            ]
            with self._room(batch, bound_bytes):
                found = writer.write_batch(outputs)
            done = [outcome for outcome in found if isinstance(outcome, Receipt)]
            measures = self._meter.wrote(len(done), self._payload.packed_bytes(payload) if life == 0 else 0)
            done_ref = self._coordinator.batch_done.remote(self._name, batch, measures, submission.measures)
            credit_wanted = result(done_ref)
            for index, outcome in zip(left, found, strict=True):
                outcomes[index] = outcome
            # a new life of the ledger has swept what was not decided: stage it again from memory
            left = [i for i in left if isinstance(outcomes[i], RunFencedError | StagingError)]
            if not left or (now := result(self._coordinator.ready.remote())) == term:
                break
            term = now
        return tuple(outcome for outcome in outcomes if outcome is not None), credit_wanted

    @contextmanager
    def _room(self, batch: str, bound_bytes: int) -> Iterator[None]:
        """Wait for room in staging; in a shared one `batch_done` gives it back."""
        if self._beside is not None:
            with self._beside.room.take(bound_bytes):
                yield
            return
        while not result(self._coordinator.reserve.remote(self._name, batch, bound_bytes)):
            continue  # the coordinator waited for room as long as one call may
        yield

    def _writer_for(self, term: str) -> Writer[Any, Receipt]:
        with self._lock:
            if self._writer is None or term > self._term:
                self._term, self._writer = term, self._make_writer(term)
            return self._writer

    def _make_writer(self, term: str) -> Writer[Any, Receipt]:
        patience = Patience(self._spec.limits.storage_wait_s)
        publishing: Publishing[Any, Receipt]
        if self._beside is not None:
            publishing = self._beside.publishing(term, patience)
        else:
            publishing = DecidedPublishing(
                self._staging,
                term,
                decide=self._meter.deciding(self._decide),
                published=self._published,
                locate=self._locate,
                patience=patience,
                temp_dir=self._spec.writers.temp_dir,
                temp_bytes=self._spec.limits.temp_bytes,
            )
        return Writer(
            resolve(self._spec.format),
            DictMode(self._spec.info.dict_mode),
            MeasuredPublishing(publishing, self._meter),
            threads=self._spec.writers.threads,
        )

    def _decide(self, proposals: Sequence[Proposal]) -> list[Decision]:
        return list(result(self._coordinator.decide.remote(proposals)))

    def _published(self, attempts: Sequence[tuple[str, str]]) -> list[FileRecord]:
        return list(result(self._coordinator.published.remote(attempts)))

    def _locate(self, keys: Sequence[str]) -> list[Receipt | SinkError]:
        found = result(self._coordinator.receipts_of.remote(keys))
        return [
            receipt or StagingError(f"the decided files of {key!r} are gone: was the run taken over?")
            for key, receipt in zip(keys, found, strict=True)
        ]
