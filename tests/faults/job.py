"""A whole run in one process, without Ray, made of the same classes as the actors and wired as they are.

``python -m tests.faults.job --staging S --dest D --run-id R --outputs N`` owns the run, writes its outputs, uploads
them meanwhile, and seals. Run again with the same arguments it finishes what it left. It says on standard output what a
producer would know, a JSON object a line, each at once:

=================  ==============================================================================================
``began``          the term of its ledger; ``committed``: keys that an earlier run left decided
``accepted``       a key whose output was handed over; with ``at_s``: what the clock says
``acknowledged``   a key that has its receipt; with ``attempt``, ``state`` and ``files``: checksum by path
``failed``         a key that has none; with ``error``: type and message
``uploaded``       a key whose upload is journaled
``sealed``         how many outputs the seal holds
``error``          why the run was not sealed: type and message
``event``          what the library logs, with its fields
=================  ==============================================================================================

It ends with 0 when the run is sealed, 1 when it is not, and 70 when its journal failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ray_sink.book import DatasetState
from ray_sink.config import UploadOptions
from ray_sink.errors import OutputsFailed, RunIncomplete, SinkError
from ray_sink.events import LOGGER_NAME
from ray_sink.filesystem import PosixFilesystem
from ray_sink.heart import Heart
from ray_sink.keys import RESERVED
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import read_seal, seal
from ray_sink.ownership import FolderPlace, Owner, Place, StorePlace, claim
from ray_sink.patience import Patience
from ray_sink.places import checked_dest, checked_staging
from ray_sink.publishing import DecidedPublishing
from ray_sink.records import (
    Decision,
    FileRecord,
    MultipartUpload,
    Proposal,
    Receipt,
    RunInfo,
    State,
    TempFile,
    UploadOutcome,
)
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.staging import Staging
from ray_sink.stores import open_store
from ray_sink.uploader import Uploader
from ray_sink.writer import Output, Writer
from tests.faults.plan import FORMAT, Plan

_P = ParamSpec("_P")
_T = TypeVar("_T")


def say(**facts: object) -> None:
    # one write a line: whoever reads beside a kill sees whole lines
    os.write(1, f"{json.dumps(facts)}\n".encode())


def told(receipt: Receipt) -> dict[str, object]:
    return {
        "attempt": receipt.attempt,
        "state": receipt.state.value,
        "files": {file.path: file.checksum for file in receipt.files},
    }


class _Saying(logging.Handler):
    """The library's events."""

    def emit(self, record: logging.LogRecord) -> None:
        say(event=getattr(record, "event", record.getMessage()), **getattr(record, "fields", {}))


class Job:
    """Driver, coordinator, writers and uploader of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.plan = Plan(
            outputs=arguments.outputs, seed=arguments.seed, split=arguments.split, elements=arguments.elements
        )
        self.root = checked_staging(arguments.staging)
        dest = None if arguments.dest == "none" else checked_dest(arguments.dest, self.root)
        self.info = RunInfo(arguments.run_id, dest, str(self.root), FORMAT.name, self.plan.dict_mode.value)
        self.upload = UploadOptions(
            concurrency=arguments.concurrency,
            multipart_above_bytes=arguments.multipart_above_bytes,
            engine=arguments.engine,
            storage_options=dict(option.split("=", 1) for option in arguments.storage_option),
        )
        self.store = open_store(dest or str(self.root), self.upload)
        self.staging = Staging(PosixFilesystem(), self.root, arguments.run_id)
        self.failures: dict[str, str] = {}
        self._ledger_lock = threading.Lock()
        self._news: queue.SimpleQueue[UploadOutcome | None] = queue.SimpleQueue()
        self._writing_ended = threading.Event()
        self._upload_error: BaseException | None = None

    # -- the driver --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        places: list[Place] = [FolderPlace(self.staging.fs, self.root)]
        if self.info.dest is not None and self.store.probe().create_only:
            places.insert(0, StorePlace(self.store))
        owner = Owner(self.info.run_id, "test", os.getpid(), os.urandom(8).hex())
        takeover_s = self.arguments.takeover_s
        self.claim = claim(places, owner, takeover_s=takeover_s, clock=time.monotonic, sleep=time.sleep)
        try:
            # a run that is sealed is complete: only what its owner left behind is cleared up
            sealed = read_seal(self.store, self.info.run_id)
            self.store.sweep()
            options = LedgerOptions(on_conflict=self.arguments.on_conflict, foreign=self._foreign())
            self.ledger = Ledger.open(self.staging, self.info, self.claim.epoch, options)
            heart = Heart(self.claim, takeover_s, self.ledger.fence)
            try:
                if sealed is None:
                    self._run()
                else:
                    say(sealed=sealed.outputs)
            finally:
                heart.stop()
                self.ledger.close()
            self.staging.sweep(self.ledger.term, finished=True)
        finally:
            self.claim.release()

    def _foreign(self) -> Mapping[str, int]:
        return {info.path: info.bytes for info in self.store.list() if not info.path.startswith(f"{RESERVED}/")}

    def _run(self) -> None:
        committed = set(self.ledger.keys())
        say(began=self.ledger.term, committed=sorted(committed))
        self._on_ledger(self.ledger.dataset, "outputs", DatasetState.OPEN)
        if self.arguments.again:
            committed = set()
        uploading = threading.Thread(target=self._upload, name="uploader", daemon=True)
        uploading.start()
        try:
            self._write([n for n in range(self.plan.outputs) if self.plan.key(n) not in committed])
        finally:
            self._writing_ended.set()
            self._news.put(None)
        self._close(uploading)

    def _close(self, uploading: threading.Thread) -> None:
        state = DatasetState.INCOMPLETE if self.failures else DatasetState.COMPLETE
        self._on_ledger(self.ledger.dataset, "outputs", state, "outputs failed" if self.failures else None)
        if not self.failures:
            self._on_ledger(self.ledger.closing)
        try:
            self._on_ledger(self.ledger.publish_rest)
        finally:  # whatever happens, the ledger is there as long as somebody reports to it
            self._news.put(None)
            uploading.join()
        if self._upload_error is not None:
            raise self._upload_error
        status = self.ledger.status()
        if failures := {**self.failures, **status.failures}:
            raise OutputsFailed(f"{len(failures)} outputs failed: {failures}", failures=failures)
        if status.unfinished:
            raise RunIncomplete("; ".join(status.unfinished))
        self.claim.check_all()
        self._on_ledger(self.ledger.begin_sealing)
        receipts = self._on_ledger(lambda: list(self.ledger.receipts()))
        made = seal(self.store, self.info, self.claim.epoch, receipts, status)
        say(sealed=made.outputs)

    # -- the coordinator ---------------------------------------------------------------------------------------------

    def _on_ledger(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self._ledger_lock:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                # as the coordinator does: a journal that failed is at an unknown state
                say(error=[type(error).__name__, str(error)])
                os._exit(70)

    def _decide(self, proposals: Sequence[Proposal]) -> Sequence[Decision]:
        return self._on_ledger(self.ledger.decide, proposals)

    def _published(self, attempts: Sequence[tuple[str, str]]) -> list[FileRecord]:
        late = self._on_ledger(self.ledger.published, attempts)
        self._news.put(None)
        return late

    def _locate(self, keys: Sequence[str]) -> Sequence[Receipt | SinkError]:
        return [self._on_ledger(self.ledger.receipt, key) or SinkError(f"{key!r} is nowhere") for key in keys]

    # -- writers -----------------------------------------------------------------------------------------------------

    def _write(self, numbers: Sequence[int]) -> None:
        """Every writer takes the next batch when it is done with one."""
        size = self.arguments.batch
        batches: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
        for first in range(0, len(numbers), size):
            for _ in range(2 if self.arguments.twice else 1):
                batches.put(numbers[first : first + size])
        errors: list[BaseException] = []
        if self.arguments.keys:
            with self._writer() as writer:
                self._write_batch(writer, [(key, 10_000 + n) for n, key in enumerate(self.arguments.keys)])
        if self.arguments.writers == 1:
            self._serve(batches, errors)
        else:
            threads = [
                threading.Thread(target=self._serve, args=(batches, errors), name=f"writer-{number}", daemon=True)
                for number in range(self.arguments.writers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _serve(self, batches: queue.SimpleQueue[Sequence[int]], errors: list[BaseException]) -> None:
        try:
            with self._writer() as writer:
                while not errors:
                    self._write_batch(writer, [(self.plan.key(number), number) for number in batches.get_nowait()])
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised by `_write`
            errors.append(error)

    def _writer(self) -> Writer[TempFile, Receipt]:
        publishing = DecidedPublishing(
            Staging(PosixFilesystem(), self.root, self.info.run_id),
            self.ledger.term,
            decide=self._decide,
            published=self._published,
            locate=self._locate,
            temp_dir=self.arguments.temp_dir,
            patience=Patience(self.arguments.storage_wait_s),
        )
        return Writer(FORMAT, self.plan.dict_mode, publishing, threads=self.arguments.threads)

    def _write_batch(self, writer: Writer[TempFile, Receipt], batch: Sequence[tuple[str, int]]) -> None:
        outputs = []
        for key, number in batch:
            say(accepted=key, at_s=time.time())
            attempt = f"{number:04d}-{self.arguments.nonce or os.urandom(8).hex()}"
            outputs.append(Output(key, self.plan.value(number), attempt, source=f"outputs/{number}"))
        for output, result in zip(outputs, writer.write_batch(outputs), strict=True):
            if isinstance(result, SinkError):
                self.failures[output.key] = str(result)
                say(failed=output.key, error=[type(result).__name__, str(result)])
            else:
                say(acknowledged=output.key, **told(result))

    # -- the uploader ------------------------------------------------------------------------------------------------

    def _upload(self) -> None:
        if self.info.dest is None:
            return
        try:
            for begun in self.ledger.abandoned_multiparts:
                self.store.abort(begun)
            retry = Retry(RetryPolicy(total_s=self.arguments.retry_s))
            with Uploader(
                self.store,
                self.arguments.upload_from or self.root,
                self.info.run_id,
                self.upload,
                on_multipart=self._multipart_started,
                retry=retry,
            ) as uploader:
                self._serve_uploads(uploader)
        except BaseException as error:  # noqa: BLE001 - raised by the driver
            self._upload_error = error

    def _serve_uploads(self, uploader: Uploader) -> None:
        """Until nothing is written any more and all of it is uploaded or has failed."""
        held: set[str] = set()
        while True:
            ended = self._writing_ended.is_set()
            tasks = self._on_ledger(
                self.ledger.take_uploads,
                0,
                holding=frozenset(held),
                max_outputs=max(1, 4 * self.upload.concurrency - len(held)),
                max_bytes=self.upload.buffer_bytes,
            )
            for task in tasks:
                held.add(task.key)
                uploader.submit(task, self._news.put)
            if ended and not tasks and not held and not self.ledger.has_unfinished_uploads():
                return
            news = [self._news.get()]
            while not self._news.empty():
                news.append(self._news.get())
            outcomes = [outcome for outcome in news if outcome is not None]
            if outcomes:
                uploader.free(self._on_ledger(self.ledger.uploaded, outcomes))
                held.difference_update(outcome.key for outcome in outcomes)
                self._say_uploaded(outcomes)

    def _say_uploaded(self, outcomes: Sequence[UploadOutcome]) -> None:
        for outcome in outcomes:
            receipt = self.ledger.receipt(outcome.key)
            if receipt is not None and receipt.state is State.UPLOADED:
                say(uploaded=outcome.key, **told(receipt))

    def _multipart_started(self, upload: MultipartUpload) -> None:
        self._on_ledger(self.ledger.multipart_started, upload)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tests.faults.job")
    add: Any = parser.add_argument
    add("--staging", type=Path, required=True)
    add("--dest", required=True, help="URL or folder; none: the staging folder")
    add("--run-id", default="run-1")
    add("--outputs", type=int, required=True)
    add("--seed", type=int, default=0)
    add("--split", action="store_true", help="two files an output")
    add("--elements", type=int, default=256, help="8 bytes each, in every file")
    add("--batch", type=int, default=4, help="outputs that a writer stages at a time")
    add("--writers", type=int, default=1)
    add("--threads", type=int, default=1, help="of each writer; 1: what it does has one order")
    add("--temp-dir", type=Path)
    add("--storage-wait-s", type=float, default=60.0, help="how long a full or silent filesystem is waited for")
    add("--upload-from", type=Path, help="the staging folder as the uploader sees it, through another mount")
    add("--nonce", help="makes the names of attempts known beforehand")
    add("--again", action="store_true", help="write what is committed, too, as a retried batch does")
    add("--twice", action="store_true", help="write every batch twice")
    add("--keys", nargs="*", default=[], help="write these keys, too")
    add("--on-conflict", default="error")
    add("--takeover-s", type=float, default=1.0)
    add("--concurrency", type=int, default=4, help="objects in flight")
    add("--retry-s", type=float, default=30.0, help="how long an upload is tried")
    add("--engine", default="auto")
    add("--multipart-above-bytes", type=int, default=256 * 2**20)
    add("--storage-option", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers = [_Saying(logging.WARNING)]
    logger.propagate = False
    try:
        Job(parsed(argv)).run()
    except (SinkError, OSError) as error:
        say(error=[type(error).__name__, str(error)])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
