"""From staged file to object. Knows no Ray and keeps no state that matters: the ledger remembers, the store proves."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from ray_sink.aside import Aside
from ray_sink.checksum import Checksum
from ray_sink.config import UploadOptions
from ray_sink.errors import (
    DestinationConflict,
    ObjectExistsError,
    SinkClosedError,
    SinkError,
    StagedFileChangedError,
    StagingError,
    StoreError,
    StoreUnavailableError,
)
from ray_sink.events import ConcurrencyChanged, Uploaded, UploadFailed, emit
from ray_sink.filesystem import chunks_of
from ray_sink.meters import UploadMeter
from ray_sink.records import FileRecord, MultipartUpload, UploadOutcome, UploadTask, Verification
from ray_sink.retry import ConcurrencyGate, FailedTry, Retry, retried
from ray_sink.stores.base import Store

# Plain lower-case letters: Azure takes no hyphen in a name, some proxies drop underscores, headers lose their case.
KEY, RUN, ATTEMPT, CHECKSUM = "sinkkey", "sinkrun", "sinkattempt", "sinkchecksum"
_MOST_KEY_BYTES = 1024  # S3 takes 2 KB of metadata in all; a key that is longer when encoded is left to the path

# NFS may show a new name, or a listing with it, up to a minute late; pauses between looks are added up
_LATE_NAME_S = 90.0
_MOMENTARY = frozenset({errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN})
_READS_OF_A_CHANGING_FILE = 10


def not_journaled(upload: MultipartUpload) -> None:
    """An `on_multipart` for uploads that no journal has to know of."""


class _AdoptedError(Exception):
    """Another attempt of this run was there first, whole."""

    def __init__(self, attempt: str, file: FileRecord) -> None:
        super().__init__(attempt)
        self.attempt = attempt
        self.file = file


class _TornError(Exception):
    """A store that checks nothing took a part of our bytes for all of them."""


class Uploader:
    """Puts published outputs into a store, and looks at what is there whenever it is not sure.

    Order of calls, all in the uploader's process: 1. `upload`, or `submit` for many at a time; 2. the caller makes
    "uploaded" durable in its ledger; 3. `free`, which removes the staged files; 4. `close`.

    Everything may be repeated, by this process or another: a file whose object is there already, proven by run id,
    attempt and checksum (by its bytes where the store holds no metadata), counts as uploaded, whether its staged file
    is still there or not. Somebody else's object is a `DestinationConflict`, unless the task says replace.

    At most ``options.concurrency`` objects are in flight, and file contents of at most ``options.buffer_bytes`` are
    in memory; a file that needs more than that goes alone. Both hold for all threads that use this uploader.

    Args:
        store: where to; closed by whoever opened it.
        staging_root: what `FileRecord.path` is relative to.
        run_id: goes into each object's metadata.
        options: bounds.
        on_multipart: told of a multipart upload before its first part; makes its id durable.
        meter: counts; None: one that nobody reads.
        retry: how often and how long to try.
        clock: seconds, monotonic; for events.
    """

    def __init__(
        self,
        store: Store,
        staging_root: Path,
        run_id: str,
        options: UploadOptions,
        *,
        on_multipart: Callable[[MultipartUpload], None] = not_journaled,
        meter: UploadMeter | None = None,
        retry: Retry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = staging_root
        self._store = store
        self._run_id = run_id
        self._options = options
        self._on_multipart = on_multipart
        self._meter = meter or UploadMeter()
        self._retry = retry or Retry()
        self._clock = clock
        self.gate = ConcurrencyGate(
            options.concurrency,
            options.buffer_bytes,
            clock=clock,
            on_change=lambda before, after: emit(ConcurrencyChanged(before, after)),
        )
        self._aside = Aside(options.concurrency, 2 * options.concurrency, "upload")
        self._state = threading.Lock()
        self._callback_errors: list[Exception] = []

    def upload(self, task: UploadTask) -> UploadOutcome:
        """Upload all files of one output; trouble comes back in the outcome, after the retries.

        Files that are there already are not sent again, so a task that failed half way may be repeated.
        """
        try:
            proofs = [self._put(task, file) for file in task.files]
        except _AdoptedError as first:
            return UploadOutcome(task.key, first.attempt, Verification.VERIFIED, file=first.file)
        except SinkError as error:
            emit(UploadFailed(task.key, str(error)))
            self._meter.failed()
            return UploadOutcome(task.key, task.attempt, error=error)
        weakest = Verification.VERIFIED
        if Verification.SIZE_CHECKED in proofs:
            weakest = Verification.SIZE_CHECKED
        return UploadOutcome(task.key, task.attempt, verification=weakest)

    def upload_as_found(self, path: str) -> UploadOutcome:
        """Upload the file `path` below the root as it is now, replacing what is there; no ledger knows of it.

        A file that is replaced while it is read is read again.
        """
        attempt = uuid.uuid4().hex
        outcome = UploadOutcome(path, attempt, error=StagedFileChangedError(f"{path} never holds still"))
        for _ in range(_READS_OF_A_CHANGING_FILE):
            try:
                file = _described(self.root, path)
            except OSError as error:
                failure = StagingError(f"{self.root / path} cannot be read: {error}")
                emit(UploadFailed(path, str(failure)))
                return UploadOutcome(path, attempt, error=failure)
            outcome = self.upload(UploadTask(path, attempt, (file,), replace=True))
            if not isinstance(outcome.error, StagedFileChangedError):
                break
        return outcome

    def submit(self, task: UploadTask, done: Callable[[UploadOutcome], None]) -> None:
        """Upload `task` on the pool; `done` gets its outcome there.

        Returns when the task has a place: while twice ``options.concurrency`` tasks are running or waiting, the
        caller waits. So `done` must not submit. What `done` raises comes out of `close`.

        Raises:
            SinkClosedError: after `close`.
        """
        self._start(lambda: self.upload(task), (task.key, task.attempt), done)

    def submit_as_found(self, path: str, done: Callable[[UploadOutcome], None]) -> None:
        """`upload_as_found` on the pool, with the bounds of `submit`."""
        self._start(lambda: self.upload_as_found(path), (path, ""), done)

    def _start(
        self, work: Callable[[], UploadOutcome], name: tuple[str, str], done: Callable[[UploadOutcome], None]
    ) -> None:
        def run() -> None:
            try:
                try:
                    outcome = work()
                except Exception as error:  # noqa: BLE001 whatever it is, its task gets an outcome
                    failure = StoreError(f"upload of {name[0]} broke: {type(error).__name__}: {error}")
                    failure.__cause__ = error
                    emit(UploadFailed(name[0], str(failure)))
                    outcome = UploadOutcome(*name, error=failure)
                done(outcome)
            except Exception as error:  # noqa: BLE001 raised by `close`
                with self._state:
                    self._callback_errors.append(error)

        if not self._aside.submit(run):
            raise SinkClosedError("the uploader is closed")

    def free(self, files: Iterable[FileRecord]) -> int:
        """Remove staged files whose upload the ledger has made durable; folders stay.

        Does nothing with ``options.keep_staged``; a file that is gone already is fine.

        Returns:
            Bytes that were freed.

        Raises:
            StagingError: a file cannot be removed.
        """
        freed = 0
        if self._options.keep_staged:
            return freed
        for file in files:
            local = self.root / file.path
            try:
                with suppress(FileNotFoundError):
                    size = local.lstat().st_size
                    local.unlink()
                    freed += size
            except OSError as error:
                raise StagingError(f"staged file {local} is uploaded and cannot be removed: {error}") from error
        return freed

    def close(self) -> None:
        """Wait for all that was submitted; a second call does nothing.

        Raises:
            Exception: what a `done` raised; an ExceptionGroup when there are several.
        """
        self._aside.close(wait=True)
        with self._state:
            errors, self._callback_errors = self._callback_errors, []
        raise_all("upload callbacks failed", errors)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _put(self, task: UploadTask, file: FileRecord) -> Verification:
        began_s = self._clock()
        metadata = self._metadata(task, file)
        adopted = torn = False
        waited_s = 0.0

        def look() -> Verification | None:
            nonlocal adopted, torn
            try:
                with self.gate.enter(0):
                    found = self._prove(task, file, metadata)
            except _TornError:
                torn, found = True, None
            adopted = found is not None
            return found

        def attempt(number: int) -> Verification:
            # the try before may have landed and lost its reply
            if number > 1 and (proof := look()) is not None:
                return proof
            local = self.root / (task.at or file.path)
            held_bytes = self._store.held_bytes(file)
            try:
                with self.gate.enter(held_bytes):
                    return self._store.put_file(
                        local,
                        file,
                        metadata=metadata,
                        replace=task.replace or torn,
                        on_multipart=self._on_multipart,
                    )
            except ObjectExistsError as error:
                if (proof := look()) is not None:
                    return proof
                raise StoreUnavailableError(
                    f"{error}; nothing is to be seen there: trying again", path=file.path
                ) from error
            except FileNotFoundError as error:
                if (proof := look()) is not None:
                    return proof
                text = f"staged file {local} is missing and the destination holds no object {file.path} of this attempt"
                if waited_s >= _LATE_NAME_S:
                    raise StagingError(f"{text}: the output has to be computed again") from error
                # reading its folder makes NFS look again
                with suppress(OSError):
                    os.listdir(local.parent)
                raise StoreUnavailableError(f"{text}: looking again", path=file.path) from error
            except StagingError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _MOMENTARY:
                    raise StoreUnavailableError(f"{error}: reading it again", path=file.path) from error
                raise

        def on_failure(failed: FailedTry) -> None:
            nonlocal waited_s
            waited_s += failed.pause_s
            self._meter.retried()
            emit(retried(file.path, failed))

        verification = self._retry.call(attempt, on_failure=on_failure)
        took_s = self._clock() - began_s
        self._meter.uploaded(file.bytes, took_s)
        emit(Uploaded(file.path, file.bytes, took_s, str(verification), adopted))
        return verification

    def _prove(self, task: UploadTask, file: FileRecord, metadata: Mapping[str, str]) -> Verification | None:
        """What is proven if our bytes are under ``file.path``; None if nothing is, or what is there may be replaced.

        Raises:
            DestinationConflict: somebody else's object is there.
            _AdoptedError: another attempt's is there, and `task` takes that.
            _TornError: what is there is ours, by its metadata, and not what we sent.
        """
        info = self._store.head(file.path)
        if info is None:
            return None
        theirs = info.metadata
        if any(name in theirs for name in (RUN, ATTEMPT, CHECKSUM)):
            ours = all(theirs.get(name) == metadata[name] for name in (RUN, ATTEMPT, CHECKSUM))
            if ours and info.bytes == file.bytes and info.checksum in (None, file.checksum):
                # a checksum that the server tells is no proof: some repeat what they were told
                return self._store.probe().verification
            if ours:
                raise _TornError
            if task.adopt and theirs.get(RUN) == self._run_id and ATTEMPT in theirs:
                if self._store.read_checksum(file.path) != theirs.get(CHECKSUM):
                    raise _TornError
                raise _AdoptedError(theirs[ATTEMPT], FileRecord(file.path, info.bytes, theirs[CHECKSUM]))
        elif info.bytes == file.bytes and self._store.read_checksum(file.path) == file.checksum:
            # no metadata to go by, but these are the bytes: we have just read them
            return Verification.VERIFIED
        if task.replace:
            return None
        raise DestinationConflict(
            f"output {task.key!r}: {self._store.url} already holds another object under {file.path}"
            f"{' from run ' + repr(theirs[RUN]) if RUN in theirs else ''}. Use another destination, or choose"
            " on_conflict='replace' or 'keep'",
            keys=(task.key,),
        )

    def _metadata(self, task: UploadTask, file: FileRecord) -> Mapping[str, str]:
        metadata = {RUN: self._run_id, ATTEMPT: task.attempt, CHECKSUM: file.checksum}
        # three bytes a character at most where all are ASCII
        if (task.key.isascii() and 3 * len(task.key) <= _MOST_KEY_BYTES) or len(quote(task.key)) <= _MOST_KEY_BYTES:
            metadata[KEY] = task.key
        return metadata


def raise_all(message: str, errors: list[Exception]) -> None:
    """Raise what is in `errors`: nothing, the one, or an ExceptionGroup."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(message, errors)


def _described(root: Path, path: str) -> FileRecord:
    running, size = Checksum(), 0
    for chunk in chunks_of(root / path):
        running.update(chunk)
        size += len(chunk)
    return FileRecord(path, size, running.text)
