"""Staging on a disk of the writer's own node: what is encoded there goes to the destination at once.

The order that loses nothing without a filesystem that others see:

1. A file is encoded on the node's disk, and its checksum taken.
2. The ledger says which outputs are in vain, or not allowed.
3. The others are put, create-only. Where another attempt of this run was first, that one has the name, for ever.
4. The ledger journals what is there. From here on the output is safe, and there is its receipt.

A crash before 4 leaves an object that no journal knows; whoever makes this output again finds it at 3 and takes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray_sink.checksum import Checksum
from ray_sink.errors import SinkError, StagingError
from ray_sink.filesystem import chunks_of
from ray_sink.keys import RESERVED
from ray_sink.patience import Patience
from ray_sink.publishing import Encode, FileSlot, Prepared, WorkT, about
from ray_sink.records import (
    Decision,
    FileRecord,
    Proposal,
    Receipt,
    TempFile,
    UploadOutcome,
    UploadTask,
    Verification,
)

Uploads = Sequence[tuple[Proposal, Verification]]


class LocalFolder:
    """A writer's own folder on its node's disk: ``<root>/_ray_sink/<run>/<random>``.

    It is locked as long as the process lives, so that the next one to come can tell what dead ones left.

    Args:
        root: see `ray_sink.NodeLocal`.
        run_id: the run.

    Raises:
        StagingError: there is no such folder, or it cannot be written.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.root = root
        self._run = root / RESERVED / run_id
        self.path = self._run / uuid.uuid4().hex
        try:
            if not root.is_dir():
                raise FileNotFoundError(f"there is no folder {root}")
            with self._locked():
                self._run.mkdir(exist_ok=True)
                self.path.mkdir(mode=0o700)
                self._lock = _lock(self.path)
                self._sweep()
        except OSError as error:
            raise StagingError(
                f"node-local staging cannot be used: {error}. NodeLocal names a folder that exists, and can be written,"
                " on each node that gets a writer"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else makes or removes folders meanwhile."""
        (self.root / RESERVED).mkdir(exist_ok=True)
        lock = _lock(self.root / RESERVED, wait=True)
        try:
            yield
        finally:
            os.close(lock)

    def _sweep(self) -> None:
        """Remove what writers of any run left that are dead."""
        for run in (self.root / RESERVED).iterdir():
            for folder in run.iterdir() if run.is_dir() else ():
                with suppress(OSError):  # alive, or somebody else's
                    lock = _lock(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)
            with suppress(OSError):
                run.rmdir()

    def clear(self) -> None:
        """Leave nothing; the last thing to do."""
        with self._locked(), suppress(OSError):
            shutil.rmtree(self.path)
            self._run.rmdir()  # fails where others are there


def _lock(folder: Path, *, wait: bool = False) -> int:
    """A descriptor that holds the lock on `folder`; without `wait`, an OSError where somebody has it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An encoded file on the node's disk."""

    temp: TempFile
    local: Path


class NodeLocalPublishing:
    """The policy of a `ray_sink.writer.Writer` whose files go to the destination before they are decided.

    Args:
        folder: where files are until then.
        term: the term of the ledger that is asked.
        foresee: what the ledger would decide; see `Ledger.foresee`. It may raise SinkError.
        upload: puts files; one outcome for each task, in order. It may raise SinkError.
        commit: see `Ledger.commit`. It may raise SinkError.
        patience: with a disk that is full or broken.
    """

    def __init__(
        self,
        folder: LocalFolder,
        term: str,
        *,
        foresee: Callable[[Sequence[Proposal]], Sequence[Decision]],
        upload: Callable[[Sequence[UploadTask]], Sequence[UploadOutcome]],
        commit: Callable[[Uploads], Sequence[Decision]],
        patience: Patience,
    ) -> None:
        self._folder = folder
        self._term = term
        self._foresee = foresee
        self._upload = upload
        self._commit = commit
        self._patience = patience

    def prepare(self, slot: FileSlot, encode: Encode) -> LocalFile:
        """See `Publishing.prepare`.

        Raises:
            StagingError: the disk is full or broken.
        """
        name = f"{slot.attempt}.{slot.number}"

        def again(number: int) -> LocalFile:
            local = self._folder.path / f"{name}~{number}"
            try:
                with local.open("xb+") as file:
                    encode(file)
                checksum, size = Checksum(), 0
                for chunk in chunks_of(local):
                    checksum.update(chunk)
                    size += len(chunk)
            except OSError as error:
                _remove(local)
                raise StagingError(f"could not stage {slot.path!r} in {self._folder.root}: {error}") from error
            except BaseException:
                _remove(local)
                raise
            return LocalFile(TempFile(f"{self._term}/{name}", FileRecord(slot.path, size, checksum.text)), local)

        return self._patience.again(again)

    def together(self, work: Callable[[], WorkT]) -> WorkT:
        """See `Publishing.together`."""
        return work()

    def discard(self, files: Sequence[LocalFile]) -> None:
        """See `Publishing.discard`."""
        for file in files:
            _remove(file.local)

    def publish(self, outputs: Sequence[Prepared[LocalFile]]) -> list[Receipt | SinkError]:
        """See `Publishing.publish`. An error that is no SinkError comes through."""
        try:
            return self._publish(outputs)
        except SinkError as error:
            return [about(output.key, error) for output in outputs]
        finally:
            self.discard([file for output in outputs for file in output.files])

    def _publish(self, outputs: Sequence[Prepared[LocalFile]]) -> list[Receipt | SinkError]:
        proposals = [
            Proposal(o.key, o.attempt, tuple(file.temp for file in o.files), o.source, o.notes) for o in outputs
        ]
        local = {output.attempt: output.files[0].local for output in outputs}
        foreseen = self._foresee(proposals)
        wanted = [p for p, d in zip(proposals, foreseen, strict=True) if _is_new(d, p)]
        tasks = [UploadTask(p.key, p.attempt, (p.files[0].file,), at=str(local[p.attempt]), adopt=True) for p in wanted]
        outcomes = self._upload(tasks) if tasks else []
        failed = {o.key: o.error for o in outcomes if o.error is not None}
        there = [
            (_as_found(proposal, outcome), outcome.verification)
            for proposal, outcome in zip(wanted, outcomes, strict=True)
            if outcome.verification is not None
        ]
        decided = {d.key: d for d in self._commit(there)} if there else {}
        return [_result(failed.get(d.key) or d.error, decided.get(d.key, d)) for d in foreseen]


def _is_new(decision: Decision, proposal: Proposal) -> bool:
    """Whether nobody has the key yet: the decision names this very attempt and has no receipt."""
    winner = decision.winner
    return winner is not None and decision.receipt is None and winner.attempt == proposal.attempt


def _as_found(proposal: Proposal, outcome: UploadOutcome) -> Proposal:
    """What has the key: this attempt, or the one that was there first."""
    if outcome.file is None:
        return proposal
    files = (TempFile(proposal.files[0].temp, outcome.file),)
    return Proposal(proposal.key, outcome.attempt, files, proposal.source, proposal.notes)


def _result(error: SinkError | None, decision: Decision) -> Receipt | SinkError:
    error = error or decision.error
    if error is not None:
        return about(decision.key, error)
    if decision.receipt is None:
        return SinkError(f"key {decision.key!r}: the attempt that has it failed: see the error of that one")
    return decision.receipt


def _remove(path: Path) -> None:
    with suppress(OSError):  # its folder is swept when this process is gone
        path.unlink()
