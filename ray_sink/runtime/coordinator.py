"""The coordinator: an actor around the ledger and the roster of writers. It carries no data.

It sits on the driver's node and shares its fate. When it dies alone, Ray starts it again with the same arguments, the
ledger comes back from its journal under a new term, and calls that were under way are made again by Ray: every one may
be repeated. Leases and the roster are only in memory: producers and the driver say again what they hold and have.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import ray

from ray_sink.book import DatasetState
from ray_sink.errors import OutputsFailed, RunFencedError, SinkClosedError, SinkError, StagingError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.journal_objects import JournalObjects, JournalStaging
from ray_sink.keys import hash_keys
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.measures import Gathered, ProducerMeasures, RunMeasures, UploaderMeasures, WriterMeasures
from ray_sink.patience import is_silence
from ray_sink.records import (
    Decision,
    FileRecord,
    MultipartUpload,
    Proposal,
    Receipt,
    RowCounts,
    RunStatus,
    UploadOutcome,
    UploadTask,
    Verification,
)
from ray_sink.runtime import placement
from ray_sink.runtime.changes import Changes
from ray_sink.runtime.credits import Credits
from ray_sink.runtime.destination import Destination
from ray_sink.runtime.ledger_thread import LedgerThread
from ray_sink.runtime.messages import RosterNews, RosterWish, RunSpec, WriterInfo
from ray_sink.runtime.roster import Roster
from ray_sink.runtime.sources import Sources
from ray_sink.runtime.staging_room import StagingRoom
from ray_sink.runtime.together import Together
from ray_sink.runtime.waits import Waits
from ray_sink.staging import Staging

_P = ParamSpec("_P")
_T = TypeVar("_T")

_POLL_S = 10.0

_FAILURES_TOLD = 20

# what is waited for; producers wait for room on their node by its id
_ROSTER = "the roster"
_ROOM = "room in staging"
_UPLOADS = "uploads"


class Coordinator:
    """See the module's text. All methods run on one event loop; the ledger on one thread beside it."""

    def __init__(
        self,
        spec: RunSpec,
        options: LedgerOptions,
        store_bytes: Mapping[str, int],
        destination: str = "",
    ) -> None:
        """Open the ledger; its journal is in the staging folder, or where nodes share none, at the destination.

        Args:
            spec: the run.
            options: what the ledger is told.
            store_bytes: size of each node's object store.
            destination: name of the destination in Ray, where the journal is there.
        """
        self._spec = spec
        run_id, wait_s = spec.info.run_id, spec.limits.storage_wait_s
        self._staging: Staging
        if not destination:
            self._thread = LedgerThread(wait_s, PosixFilesystem())
            self._staging = Staging(self._thread.fs, Path(spec.info.staging), run_id)
        else:
            place = Destination.named(spec.info.dest or "", destination)
            self._thread = LedgerThread(wait_s, JournalObjects(place, run_id))
            self._staging = JournalStaging(self._thread.fs, run_id)
        self._ledger: Ledger | None = None
        self._failed: SinkError | None = None
        try:
            self._ledger = self._thread.first(lambda: Ledger.open(self._staging, spec.info, spec.epoch, options))
        except (SinkError, OSError) as error:
            # said to everyone who asks; a constructor that raises would be restarted for ever
            self._failed = error if isinstance(error, SinkError) else StagingError(f"no journal: {error}")
        self._roster = Roster(spec.writers.per_node)
        self._changes = Changes()
        self._uploads = Waits()
        self._deciding = Together(self._decide)
        self._committing = Together(self._commit)
        most = spec.limits.object_store_bytes
        self._store_bytes = dict(store_bytes)
        self._credits = Credits(lambda node: most or self._store_bytes.get(node, 2**30) // 5, clock=time.monotonic)
        self._gathered = Gathered()
        self._staging_room = StagingRoom(spec.limits.staging_bytes)
        self._closing = False
        self._sources = Sources()

    # -- plumbing ----------------------------------------------------------------------------------------------------

    def _book(self) -> Ledger:
        if self._failed is not None:
            raise self._failed
        if self._closing:
            raise SinkClosedError("the sink is closed: make a new one to go on with the run")
        assert self._ledger is not None
        return self._ledger

    async def _on_ledger(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run one call of the ledger's on its thread.

        A journal that fails is at an unknown state: this life ends, and the next one reads what is there. One that
        hangs may be so, too, but a process cannot end while the operating system keeps a thread of it: this life
        answers everybody that it is over.
        """
        try:
            return await self._thread.run(call, *args, **kwargs)
        except StagingError as error:
            if is_silence(error):
                self._failed = self._failed or error
                self._changes.tell_all()
            raise
        except OSError:
            os._exit(70)

    async def ready(self) -> str:
        """The term.

        Raises:
            SinkError: the ledger could not be opened.
        """
        return self._book().term

    # -- roster ------------------------------------------------------------------------------------------------------

    async def sync_roster(self, news: RosterNews) -> RosterWish:
        """The driver says which writers there are, and learns what to do, if there is nothing after a while."""
        self._roster.update(news.writers, news.starting, news.draining, news.gone)
        self._staging_room.keep({writer.name for writer in news.writers} | news.leaving)
        self._changes.tell(_ROSTER, _ROOM)
        await self._changes.until(_ROSTER, lambda: bool(self._roster.wish()) or self._closing, _POLL_S)
        return self._roster.wish()

    async def writers(self, node: str, dead: str | None = None) -> list[WriterInfo]:
        """The writers for producers on `node`, as soon as there are any; `dead` is one that the caller found dead."""
        self._book()
        if dead is not None and self._roster.fail(dead):
            self._changes.tell(_ROSTER)
        while True:
            if self._roster.want(node):
                self._changes.tell(_ROSTER)
            if await self._changes.until(_ROSTER, lambda: bool(self._roster.serving(node)), _POLL_S):
                return self._roster.serving(node)

    # -- producers ---------------------------------------------------------------------------------------------------

    async def producer_opened(self, name: str, needs_goodbye: bool) -> None:
        """A handle is about to issue its first ticket."""
        if needs_goodbye:
            await self._on_ledger(self._book().producer_opened, name)

    async def set_aside(self, failures: Mapping[str, str]) -> bool:
        """Outputs that failed; whether the run may go on without them."""
        await self._on_ledger(self._book().failed, failures)
        self._changes.tell(_ROOM, _UPLOADS)
        status = await self.status()
        return len(status.failures) <= self._spec.limits.max_failures

    async def producer_closed(self, node: str, measures: ProducerMeasures, failures: Mapping[str, str]) -> None:
        """A handle's goodbye, with all that it has counted."""
        await self._on_ledger(self._book().producer_closed, measures.name, measures.accepted, failures)
        self._gathered.producer(measures)
        self._credits.left(measures.name, node)
        self._changes.tell(node, _ROOM, _UPLOADS)

    async def acquire(self, name: str, node: str, held_bytes: int, granted_bytes: int, need_bytes: int) -> int:
        """Lease room in a node's object store to a producer; waits until there is some, in line with the others there.

        Args:
            name: the producer.
            node: its node.
            held_bytes: what it holds already.
            granted_bytes: all that it was ever granted, as far as it knows.
            need_bytes: what it needs beyond that.

        Returns:
            Bytes granted on top, at least `need_bytes`; 0 after a while without room: ask again.
        """
        await self._learn(node)
        self._credits.asked(name, node, held_bytes, granted_bytes)
        granted = 0

        def try_it() -> bool:
            nonlocal granted
            granted = self._credits.lease(name, node, need_bytes)
            return granted > 0

        with self._credits.starves(name):
            await self._changes.until(node, try_it, _POLL_S, place=self._credits.place(name))
        self._gathered.holds(in_flight_bytes=self._credits.held_bytes)
        return granted

    async def _learn(self, node: str) -> None:
        """Look up the object store of a node that has joined since; beside the event loop, for the head may be away."""
        if node not in self._store_bytes and ray.is_initialized():
            self._store_bytes |= (await asyncio.to_thread(placement.nodes)).store_bytes

    async def hold(self, node: str, held_bytes: int, granted_bytes: int, measures: ProducerMeasures) -> None:
        """A producer says what it holds, was granted and has counted, now and then and when others wait for credit."""
        await self._learn(node)
        self._credits.said(measures.name, node, held_bytes, granted_bytes)
        self._gathered.producer(measures)
        self._changes.tell(node)

    # -- writers -----------------------------------------------------------------------------------------------------

    async def reserve(self, writer: str, batch: str, n_bytes: int) -> bool:
        """Reserve room in staging for a batch of a writer's; False after a while without room: ask again.

        Raises:
            OutputsFailed: uploads have failed for good, so that waiting for room would be in vain.
        """
        if not self._frees_staging():
            return True
        room = self._staging_room

        def try_it() -> bool:
            staged_bytes = self._book().staged_bytes
            return bool(self._failing()) or room.reserve(writer, batch, n_bytes, staged_bytes=staged_bytes)

        done = await self._changes.until(_ROOM, try_it, _POLL_S, place=room.place(writer, batch))
        if failures := self._failing():
            raise OutputsFailed.of(failures)
        return done

    def _frees_staging(self) -> bool:
        return self._spec.info.dest is not None and not self._spec.upload.keep_staged

    def _failing(self) -> Mapping[str, str]:
        failures = self._book().failures
        return dict(failures) if len(failures) > self._spec.limits.max_failures else {}

    async def decide(self, proposals: Sequence[Proposal]) -> list[Decision]:
        """Decide a batch of keys; batches that come in together share a journal record and its fsync."""
        return await self._deciding(proposals)

    async def _decide(self, proposals: Sequence[Proposal]) -> list[Decision]:
        return await self._on_ledger(self._book().decide, proposals)

    async def foresee(self, proposals: Sequence[Proposal]) -> list[Decision]:
        """See `Ledger.foresee`; waits for no file operation."""
        return self._book().foresee(proposals)

    async def commit(
        self, uploads: Sequence[tuple[Proposal, Verification]], measures: UploaderMeasures
    ) -> list[Decision]:
        """See `Ledger.commit`; batches that come in together share a journal record and its put.

        Args:
            uploads: what is at the destination.
            measures: what the uploader that put it has counted.
        """
        self._gathered.uploader(measures)
        decisions = await self._committing(uploads)
        self._changes.tell(_UPLOADS)
        return decisions

    async def _commit(self, uploads: Sequence[tuple[Proposal, Verification]]) -> list[Decision]:
        return await self._on_ledger(self._book().commit, uploads)

    async def published(self, attempts: Sequence[tuple[str, str]]) -> list[FileRecord]:
        """A writer has published decided attempts; see `Ledger.published`."""
        late = await self._on_ledger(self._book().published, attempts)
        self._changes.tell(_UPLOADS)
        return late

    async def batch_done(self, writer: str, batch: str, measures: WriterMeasures, producer: ProducerMeasures) -> bool:
        """A writer needs a batch's reserved room no more; whether producers wait for credit.

        Args:
            writer: as in `reserve`.
            batch: as in `reserve`.
            measures: what the writer has counted.
            producer: what the batch's producer had counted when it sent it.
        """
        self._gathered.writer(measures)
        self._gathered.producer(producer)
        self._gathered.holds(staged_bytes=self._ledger.staged_bytes if self._ledger is not None else 0)
        self._staging_room.done(writer, batch)
        self._changes.tell(_ROOM)
        return self._credits.anyone_starves

    async def receipts_of(self, keys: Sequence[str]) -> list[Receipt | None]:
        """Receipts as the ledger has them now."""
        ledger = self._book()
        return [ledger.receipt(key) for key in keys]

    async def await_uploaded(self, keys: Sequence[str]) -> list[Verification | SinkError]:
        """What the uploads of staged outputs proved, once they are done, for ``ack="uploaded"``."""
        ledger = self._book()
        failures = ledger.failures
        await self._uploads.until_met(key for key in keys if not self._is_settled(key))
        return [OutputsFailed.of({k: failures[k]}) if k in failures else ledger.proof(k) for k in keys]

    def _is_settled(self, key: str) -> bool:
        ledger = self._book()
        return ledger.is_uploaded(key) or key in ledger.failures

    # -- uploaders ---------------------------------------------------------------------------------------------------

    async def abandoned_multiparts(self) -> tuple[MultipartUpload, ...]:
        """Multipart uploads that an earlier life began and did not end."""
        return self._book().abandoned_multiparts

    async def open_multiparts(self) -> tuple[MultipartUpload, ...]:
        """See `Ledger.open_multiparts`; when all is uploaded, none of them is of any use."""
        return self._book().open_multiparts

    async def unfreed(self, uploader: int) -> list[FileRecord]:
        """Staged files that an uploader, which may have died since, was to free."""
        return self._book().unfreed(uploader)

    async def take_uploads(
        self, uploader: int, holding: frozenset[str], max_outputs: int, max_bytes: int
    ) -> list[UploadTask] | None:
        """Published outputs for an uploader; waits a while for some. None: the run ends, and so may the uploader."""
        await self._changes.until(
            _UPLOADS, lambda: self._closing or self._book().has_uploads(uploader, holding), _POLL_S
        )
        if self._closing:
            return None
        ledger = self._book()
        return await self._on_ledger(
            ledger.take_uploads, uploader, holding=holding, max_outputs=max_outputs, max_bytes=max_bytes
        )

    async def uploaded(
        self, uploader: int, outcomes: Sequence[UploadOutcome], measures: UploaderMeasures
    ) -> list[FileRecord]:
        """Journal uploads; returns the staged files that may be freed, which take their room until they are `freed`."""
        self._gathered.uploader(measures)
        ledger = self._book()
        if self._frees_staging():
            # before the ledger lets go of them
            self._staging_room.frees(uploader, ledger.bytes_of(outcome.key for outcome in outcomes))
        files = await self._on_ledger(ledger.uploaded, outcomes)
        self._uploads.met(outcome.key for outcome in outcomes if self._is_settled(outcome.key))
        self._changes.tell(_UPLOADS, _ROOM)
        return files

    async def freed(self, uploader: int) -> None:
        """An uploader has freed what it was told to."""
        self._staging_room.frees(uploader, 0)
        self._changes.tell(_ROOM)

    async def multipart_started(self, upload: MultipartUpload) -> None:
        """Journal a multipart upload before its first part."""
        await self._on_ledger(self._book().multipart_started, upload)

    # -- datasets ----------------------------------------------------------------------------------------------------

    async def dataset_opened(self, dataset_id: str) -> None:
        """A dataset is going to run through the sink."""
        await self._on_ledger(self._book().dataset, dataset_id, DatasetState.OPEN)

    async def close_sources(self, sources: Sequence[str]) -> None:
        """All outputs of these input rows have their receipts."""
        await self._on_ledger(self._book().close_sources, sources)

    async def sources_seen(self, dataset_id: str, execution: str, place: str, hashes: np.ndarray) -> None:
        """See `ray_sink.runtime.sources.Sources.seen`."""
        self._sources.seen(dataset_id, execution, place, hashes)

    async def rows_seen(self, dataset_id: str, part: str, rows_in: int, rows_skipped: int) -> None:
        """Rows that one task of a dataset took in; repeats of the task count once."""
        await self._on_ledger(self._book().rows, dataset_id, f"in:{part}", RowCounts(rows_in, 0, rows_skipped))

    async def rows_ended(self, dataset_id: str, rows: RowCounts) -> None:
        """What a dataset's driver counted when an execution ended; repeats count once."""
        await self._on_ledger(self._book().rows, dataset_id, "out:all", rows)

    async def dataset_closed(self, dataset_id: str, complete: bool, reason: str | None = None) -> None:
        """A dataset has ended, or was given up for a reason."""
        if complete and (sharing := self._sources.sharing(dataset_id)):
            complete, reason = False, f"has {sharing} row(s) whose source is another row's, too: give each its own"
        state = DatasetState.COMPLETE if complete else DatasetState.INCOMPLETE
        await self._on_ledger(self._book().dataset, dataset_id, state, reason)

    async def committed_keys(self) -> np.ndarray:
        """Sorted 128-bit hashes of all keys that need not be computed again; see `ray_sink.keys.hash_keys`."""
        ledger = self._book()
        hashes = await self._on_ledger(lambda: hash_keys(ledger.keys()))
        await asyncio.to_thread(hashes.sort)
        return hashes

    async def closed_sources(self) -> np.ndarray:
        """Sorted hashes, as above, of all sources whose rows need not be computed again."""
        hashes = np.frombuffer(await self._on_ledger(self._book().closed_sources), dtype="S16")
        return await asyncio.to_thread(np.unique, hashes)

    # -- the whole ---------------------------------------------------------------------------------------------------

    async def status(self) -> RunStatus:
        """Where the run stands."""
        return await self._on_ledger(self._book().status)

    async def glance(self) -> RunStatus:
        """`status` for whoever only watches: does not wait for what the ledger is just writing."""
        return await self._thread.glance(self._book().status)

    async def measured(self) -> RunMeasures:
        """What the run's processes have counted, and how far its outputs are; waits for no file operation."""
        status = await self.glance()
        return self._gathered.run(
            RunMeasures(
                decided=status.decided,
                staged=status.staged,
                uploaded=status.uploaded,
                staged_bytes=status.staged_bytes,
                failed=len(status.failures),
                failures=dict(itertools.islice(status.failures.items(), _FAILURES_TOLD)),
                in_flight_bytes=self._credits.held_bytes,
            )
        )

    async def fence(self, by: str) -> None:
        """A newer owner has the run: refuse everything from now on."""
        self._failed = RunFencedError(by)
        if self._ledger is not None:
            self._ledger.fence(by)
        self._changes.tell_all()

    async def drain(self, timeout_s: float | None) -> RunStatus:
        """Publish what writers left decided, then wait until all is uploaded, something failed, or the time is up.

        Without a time it is the driver's `close`, which has found nothing unfinished.
        """
        ledger = self._book()
        if timeout_s is None:
            await self._on_ledger(ledger.closing)
        await self._on_ledger(ledger.publish_rest)
        self._uploads.met(ledger.failures)
        self._changes.tell(_UPLOADS, _ROOM)
        if self._spec.info.dest is not None:
            await self._changes.until(
                _UPLOADS, lambda: not ledger.has_unfinished_uploads() or self._failed is not None, timeout_s
            )
        return await self.status()

    async def receipts(self) -> list[Receipt]:
        """The receipts of all that is committed, by key."""
        await self._on_ledger(self._book().begin_sealing)
        return await self._on_ledger(lambda: list(self._book().receipts()))

    async def stop(self, sweep: bool) -> None:
        """End this life in good order; `sweep`: the run is sealed, and nothing is to stay of it in the staging folder.

        Raises:
            StagingError: something could not be removed. Nothing is lost by it.
        """
        self._closing = True
        self._changes.tell_all()
        if self._ledger is not None:
            await self._on_ledger(self._ledger.close)
            if sweep:
                await self._on_ledger(self._sweep, self._ledger)

    def _sweep(self, ledger: Ledger) -> None:
        try:
            if self._frees_staging():
                # whoever was told to free them may be gone, or may not have heard of it
                for uploader in range(self._spec.upload.uploaders):
                    self._staging.free(ledger.unfreed(uploader))
            self._staging.sweep(ledger.term, finished=True)
        except OSError as error:
            raise StagingError(f"not all could be removed below {self._spec.info.staging}: {error}") from error
