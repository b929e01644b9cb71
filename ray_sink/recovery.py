"""Finishing what a run left whose cluster is gone: no Ray, one process, the same plain classes as in the actors."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ray_sink.book import read_history
from ray_sink.config import OnConflict, UploadOptions
from ray_sink.errors import RunError, RunMismatchError, RunSealedError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.heart import Heart
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import Seal, read_seal, seal
from ray_sink.ownership import Claim, FolderPlace, Owner, Place, StorePlace, claim
from ray_sink.places import checked_dest
from ray_sink.records import MultipartUpload, RunInfo, RunStatus, UploadOutcome
from ray_sink.staging import Staging
from ray_sink.standing import tally_of
from ray_sink.stores.base import Store
from ray_sink.uploader import Uploader


@dataclass(frozen=True, slots=True)
class Uploads:
    """What a recovery has done so far.

    Attributes:
        outputs: outputs whose upload is journaled now.
        bytes: their size, in bytes.
        freed_bytes: staged bytes that were freed.
        aborted: multipart uploads of dead owners that were aborted.
        failures: reason by key, for outputs that could not be uploaded; they stay staged.
    """

    outputs: int
    bytes: int
    freed_bytes: int
    aborted: int
    failures: Mapping[str, str]


def journaled_run(root: Path, run_id: str, dest: str | None) -> RunInfo:
    """What the journal says the run is.

    Args:
        root: the staging folder.
        run_id: the run.
        dest: the destination, where the caller names one.

    Raises:
        RunError: the journal has no record yet.
        RunMismatchError: the run goes to another destination.
        ConfigError: `dest` can be no run's destination.
    """
    info = tally_of(root, run_id).info
    if info is None:
        raise RunError(f"run {run_id!r} has decided nothing yet: run the script again")
    if dest is not None and checked_dest(dest, root) != info.dest:
        raise RunMismatchError(f"run {run_id!r} goes to {info.dest or 'its staging folder'}, and --dest is {dest}")
    return info


def claimed(root: Path, info: RunInfo, store: Store, takeover_s: float) -> Claim:
    """Claim a run's roots for this process; see `ray_sink.ownership.claim`.

    Raises:
        RunOwnedError: a live driver owns one of them; nothing was changed.
        DestinationError: the destination cannot be reached or written.
    """
    places: list[Place] = [FolderPlace(PosixFilesystem(), root)]
    if info.dest is not None and store.probe().create_only:
        # as a Sink does: a store that keeps its word comes first
        places.insert(0, StorePlace(store))
    owner = Owner(info.run_id, socket.gethostname(), os.getpid(), uuid.uuid4().hex)
    return claim(places, owner, takeover_s=takeover_s, clock=time.monotonic, sleep=time.sleep)


class Recovery:
    """One run of one staging folder, owned for as long as the ``with`` block lasts.

    Order of calls: 1. entering claims the run's roots and opens its ledger in a new epoch, which rolls forward what
    was decided; 2. `upload`; 3. `may_be_sealed`, and `seal`; leaving lets go of the roots. All of it may be repeated
    after a crash at any point.

    Args:
        root: the staging folder.
        info: the run, from `journaled_run`.
        store: its destination, or its staging folder where it has none; closed by whoever opened it.
        upload: bounds.
        on_conflict: what the run said; a journal does not tell.
        takeover_s: how long a dead owner's counter must stand still, in seconds.

    Raises:
        RunOwnedError: a live driver owns the run's roots; nothing was changed. On entering.
        DestinationError: the destination cannot be reached or written. On entering.
    """

    def __init__(
        self,
        root: Path,
        info: RunInfo,
        store: Store,
        *,
        upload: UploadOptions,
        on_conflict: OnConflict = "error",
        takeover_s: float,
    ) -> None:
        self.info = info
        self._root = root
        self._store = store
        self._upload = upload
        self._on_conflict: OnConflict = on_conflict
        self._takeover_s = takeover_s
        self._fs = PosixFilesystem()
        self._staging = Staging(self._fs, root, info.run_id)
        self._lock = threading.Lock()  # the ledger is for one thread at a time
        self._sealed = False

    def __enter__(self) -> Self:
        self._claim = claimed(self._root, self.info, self._store, self._takeover_s)
        try:
            # the owner before us may have sealed it while we waited
            if read_seal(self._store, self.info.run_id) is not None:
                raise RunSealedError(f"run {self.info.run_id!r} was sealed meanwhile: nothing is left to do")
            self._store.sweep()
            options = LedgerOptions(on_conflict=self._on_conflict, keep_staged=self._upload.keep_staged)
            self._ledger = Ledger.open(self._staging, self.info, self._claim.epoch, options)
        except BaseException:
            self._claim.release()
            raise
        self._heart = Heart(self._claim, self._takeover_s, self._ledger.fence)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._heart.stop()
            self._ledger.close()
            if self._sealed:
                self._staging.sweep(self._ledger.term, finished=True)
        finally:
            self._claim.release()

    def status(self) -> RunStatus:
        """Where the run stands."""
        with self._lock:
            return self._ledger.status()

    def upload(self, on_progress: Callable[[Uploads], None]) -> Uploads:
        """Abort what dead owners began in parts, then upload everything staged, journal it, and free it.

        Args:
            on_progress: told after every batch that is journaled.

        Raises:
            RunFencedError: somebody has taken the run over meanwhile.
            StoreError: a multipart upload cannot be aborted.
            StagingError: a staged file cannot be freed.
        """
        done = Uploads(0, 0, 0, 0, {})
        if self.info.dest is None:
            return done
        for begun in self._ledger.abandoned_multiparts:
            self._store.abort(begun)
            with self._lock:
                self._ledger.multipart_aborted(begun)
        done = Uploads(0, 0, 0, len(self._ledger.abandoned_multiparts), {})
        outcomes: queue.SimpleQueue[UploadOutcome] = queue.SimpleQueue()
        held: set[str] = set()
        uploader = Uploader(
            self._store, self._root, self.info.run_id, self._upload, on_multipart=self._multipart_started
        )
        try:
            with uploader:
                while self._submit(uploader, outcomes, held) or held:
                    done = self._journal([outcomes.get(), *_taken(outcomes)], uploader, held, done)
                    on_progress(done)
        finally:
            # on the way out of an error too: what is there is there
            if left := _taken(outcomes):
                done = self._journal(left, uploader, held, done)
        return done

    def _submit(self, uploader: Uploader, outcomes: queue.SimpleQueue[UploadOutcome], held: set[str]) -> bool:
        room = 4 * self._upload.concurrency - len(held)
        if room <= 0:
            return False
        with self._lock:
            tasks = self._ledger.take_uploads(
                0, holding=frozenset(held), max_outputs=room, max_bytes=self._upload.buffer_bytes
            )
        for task in tasks:
            held.add(task.key)
            uploader.submit(task, outcomes.put)
        return bool(tasks)

    def _journal(self, outcomes: list[UploadOutcome], uploader: Uploader, held: set[str], done: Uploads) -> Uploads:
        with self._lock:
            files = self._ledger.uploaded(outcomes)
        freed_bytes = uploader.free(files)
        held.difference_update(outcome.key for outcome in outcomes)
        return Uploads(
            outputs=done.outputs + sum(outcome.error is None for outcome in outcomes),
            bytes=done.bytes + sum(file.bytes for file in files),
            freed_bytes=done.freed_bytes + freed_bytes,
            aborted=done.aborted,
            failures=dict(self._ledger.failures),
        )

    def _multipart_started(self, upload: MultipartUpload) -> None:
        with self._lock:
            self._ledger.multipart_started(upload)

    def may_be_sealed(self) -> bool:
        """Whether the journal itself says that nothing more was to come, and all of it is committed."""
        status = self.status()
        book = read_history(self._fs, self._staging.journal_dir).book
        return (book.closing or book.sealing) and not status.unfinished and not self._uncommitted(status)

    def _uncommitted(self, status: RunStatus) -> bool:
        return bool(status.failures) or self._ledger.has_unfinished_uploads()

    def seal(self) -> Seal:
        """Seal the run.

        Raises:
            RunError: its driver had not come to its end, or an output is not committed.
            RunFencedError: somebody has taken the run over.
        """
        if not self.may_be_sealed():
            raise RunError(f"run {self.info.run_id!r} is not complete: it cannot be sealed. Run its script again")
        status = self.status()
        self._claim.check_all()
        with self._lock:
            self._ledger.begin_sealing()
            receipts = list(self._ledger.receipts())
        made = seal(self._store, self.info, self._claim.epoch, receipts, status)
        self._sealed = True
        return made


def _taken(outcomes: queue.SimpleQueue[UploadOutcome]) -> list[UploadOutcome]:
    found: list[UploadOutcome] = []
    while True:
        try:
            found.append(outcomes.get_nowait())
        except queue.Empty:
            return found
