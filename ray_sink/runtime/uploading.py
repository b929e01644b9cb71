"""The uploader actor: a shell around `ray_sink.uploader.Uploader`, and the only process that has credentials."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from ray_sink.config import UploadOptions
from ray_sink.errors import StoreError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.keys import RESERVED
from ray_sink.manifest import Seal, get_ready, seal
from ray_sink.measures import UploaderMeasures
from ray_sink.meters import UploadMeter, process_name
from ray_sink.records import MultipartUpload, Receipt, RunInfo, RunStatus, UploadOutcome, UploadTask
from ray_sink.runtime.calls import result
from ray_sink.staging import Staging
from ray_sink.stores import open_store
from ray_sink.stores.base import Capabilities, ObjectInfo, Store
from ray_sink.uploader import Uploader

_log = logging.getLogger("ray_sink")

_LINGER_S = 0.02
"""How long the first outcome of a report waits for others, while others are under way."""


class UploaderShell:
    """Uploads what the coordinator hands out, and does for the driver what needs credentials.

    Every method may be repeated: when the actor dies Ray starts it again and repeats what was under way, `serve`
    included.
    """

    def __init__(self, info: RunInfo, options: UploadOptions) -> None:
        self._info = info
        self._options = options
        self._opening = threading.Lock()
        self._opened: Store | None = None
        self._service: _Service | None = None
        self._beside: _Beside | None = None

    @property
    def _store(self) -> Store:
        with self._opening:
            return self._store_opened()

    def _store_opened(self) -> Store:
        # not in the constructor: what is wrong with it is an answer to a call, and no reason to start again
        if self._opened is None:
            self._opened = open_store(self._info.dest or self._info.staging, self._options)
        return self._opened

    def probe(self) -> Capabilities:
        """See `ray_sink.stores.base.Store.probe`."""
        return self._store.probe()

    def listing(self) -> dict[str, int]:
        """Sizes of all objects at the destination that are not the sink's own, by path."""
        return {info.path: info.bytes for info in self._store.list() if not info.path.startswith(f"{RESERVED}/")}

    def put_bytes(self, path: str, data: bytes, replace: bool) -> None:
        """See `ray_sink.stores.base.Store.put_bytes`."""
        self._store.put_bytes(path, data, replace=replace)

    def get_bytes(self, path: str) -> bytes:
        """See `ray_sink.stores.base.Store.get_bytes`."""
        return self._store.get_bytes(path)

    def list(self, prefix: str) -> list[ObjectInfo]:
        """See `ray_sink.stores.base.Store.list`."""
        return list(self._store.list(prefix))

    def delete(self, path: str) -> None:
        """See `ray_sink.stores.base.Store.delete`."""
        self._store.delete(path)

    def abort(self, upload: MultipartUpload) -> None:
        """See `ray_sink.stores.base.Store.abort`."""
        self._store.abort(upload)

    def sweep(self) -> None:
        """See `ray_sink.stores.base.Store.sweep`."""
        self._store.sweep()

    def seal(self, epoch: int, receipts: Sequence[Receipt], status: RunStatus) -> Seal:
        """See `ray_sink.manifest.seal`; what uploaders left that died on their first look at the store goes before."""
        try:
            self._store.sweep_probes()
        except StoreError as error:  # some bytes; a run is not kept from its end by them
            _log.warning("probe.left", extra={"run_id": self._info.run_id, "error": str(error)})
        return seal(self._store, self._info, epoch, receipts, status)

    def serve(self, coordinator: Any, index: int) -> None:
        """Upload until the run ends."""
        if index == 0:
            get_ready()  # there is nothing to upload yet; at the end everybody waits for the seal
            for upload in result(coordinator.abandoned_multiparts.remote()):
                with suppress(StoreError):  # before the seal it is tried once more
                    self._store.abort(upload)
        self._service = _Service(self._info, self._options, self._store, coordinator, index)
        self._service.run()

    def upload(self, tasks: Sequence[UploadTask], coordinator: Any) -> tuple[Sequence[UploadOutcome], UploaderMeasures]:
        """Upload what a writer beside this has staged; an outcome for each task, in order, and all that was counted."""
        with self._opening:
            if self._beside is None:
                self._beside = _Beside(self._info, self._options, self._store_opened(), coordinator)
        return self._beside.upload(tasks)

    def leave(self, draining: frozenset[str]) -> bool:
        """Where this is on one of these nodes: take nothing more, finish what is under way, and say that it is."""
        if str(ray.get_runtime_context().get_node_id()) not in draining:
            return False
        if self._service is not None:
            self._service.finish()
        return True


class _Beside:
    """Uploads for one writer, several batches at a time."""

    def __init__(self, info: RunInfo, options: UploadOptions, store: Store, coordinator: Any) -> None:
        self._meter = UploadMeter()
        self._uploader = Uploader(
            store,
            Path(info.staging),
            info.run_id,
            options,
            on_multipart=lambda upload: result(coordinator.multipart_started.remote(upload)),
            meter=self._meter,
        )

    def upload(self, tasks: Sequence[UploadTask]) -> tuple[Sequence[UploadOutcome], UploaderMeasures]:
        done: queue.SimpleQueue[tuple[int, UploadOutcome]] = queue.SimpleQueue()
        for index, task in enumerate(tasks):
            self._uploader.submit(task, lambda outcome, index=index: done.put((index, outcome)))  # type: ignore[misc]
        found = dict(done.get() for _ in tasks)
        gate = self._uploader.gate
        measures = self._meter.measures(process_name(), concurrency=gate.allowed, peak_bytes=gate.peak_bytes)
        return [found[index] for index in range(len(tasks))], measures


class _Service:
    """One life of an uploader's loop: it takes work, uploads on the pool, and reports in batches."""

    def __init__(self, info: RunInfo, options: UploadOptions, store: Store, coordinator: Any, index: int) -> None:
        self._options = options
        self._coordinator = coordinator
        self._index = index
        self._staging = Staging(PosixFilesystem(), Path(info.staging), info.run_id)
        self._meter = UploadMeter()
        self._uploader = Uploader(
            store,
            Path(info.staging),
            info.run_id,
            options,
            on_multipart=self._multipart_started,
            meter=self._meter,
        )
        self._outcomes: queue.SimpleQueue[UploadOutcome | None] = queue.SimpleQueue()
        self._held: set[str] = set()
        self._leaving = False
        self._ending = threading.Event()
        self._lock = threading.Condition()
        self._error: BaseException | None = None

    def run(self) -> None:
        if not self._options.keep_staged:
            self._staging.free(result(self._coordinator.unfreed.remote(self._index)))
            self._coordinator.freed.remote(self._index)
        reporter = threading.Thread(target=self._report, name="ray_sink-report", daemon=True)
        reporter.start()
        try:
            while self._error is None:
                with self._lock:
                    holding = frozenset(self._held)
                tasks = result(
                    self._coordinator.take_uploads.remote(
                        self._index, holding, 4 * self._options.concurrency, self._options.buffer_bytes
                    )
                )
                if tasks is None:
                    break
                with self._lock:
                    if self._leaving:
                        # the next life takes them again
                        self._lock.wait_for(lambda: self._error is not None)
                        break
                    self._held.update(task.key for task in tasks)
                for task in tasks:
                    self._uploader.submit(task, self._outcomes.put)
        finally:
            self._uploader.close()
            self._outcomes.put(None)
            self._ending.set()
            reporter.join()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Take nothing more; returns when what is under way is uploaded and reported."""
        with self._lock:
            self._leaving = True
            self._lock.wait_for(lambda: not self._held or self._error is not None)

    def _multipart_started(self, upload: MultipartUpload) -> None:
        result(self._coordinator.multipart_started.remote(upload))

    def _measures(self) -> UploaderMeasures:
        gate = self._uploader.gate
        return self._meter.measures(process_name(), concurrency=gate.allowed, peak_bytes=gate.peak_bytes)

    def _report(self) -> None:
        """One message, and one journal record, for all that has come in meanwhile; files are freed only after it."""
        try:
            while (outcomes := self._come_in()) is not None:
                files = result(self._coordinator.uploaded.remote(self._index, outcomes, self._measures()))
                if not self._options.keep_staged:
                    self._staging.free(files)
                    if self._outcomes.empty():  # else the next report says so, too; at the end nobody asks for room
                        self._coordinator.freed.remote(self._index)
                with self._lock:
                    self._held.difference_update(outcome.key for outcome in outcomes)
                    self._lock.notify_all()
        except BaseException as error:  # noqa: BLE001 - the serving thread raises it
            with self._lock:
                self._error = error
                self._lock.notify_all()

    def _come_in(self) -> list[UploadOutcome] | None:
        """At least one outcome, and those that follow it closely; None at the end."""
        if (first := self._outcomes.get()) is None:
            return None
        outcomes = [first]
        if len(self._held) > 1:
            # a message and a record for each small output would cost more than its upload
            self._ending.wait(_LINGER_S)
        # only this thread takes them out
        while not self._outcomes.empty():
            if (outcome := self._outcomes.get()) is None:
                self._outcomes.put(None)
                break
            outcomes.append(outcome)
        return outcomes
