"""The ledger: decides keys, once, durably, in one place, and remembers each one's state.

Every change is one journal record before anybody hears of it; `ray_sink.book` says which. One instance, one thread at a
time: the coordinator gathers what has come in, calls once, and answers everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace

from ray_sink.book import Book, DatasetState
from ray_sink.config import OnConflict
from ray_sink.deciding import Round, kept_receipt
from ray_sink.entries import Entry, record_of
from ray_sink.errors import RunFencedError, StagingError
from ray_sink.journal import Journal
from ray_sink.lives import begin_life, check_same_run
from ray_sink.records import (
    Decision,
    FileRecord,
    MultipartUpload,
    Proposal,
    Receipt,
    RowCounts,
    RunInfo,
    RunStatus,
    State,
    UploadOutcome,
    UploadTask,
    Verification,
    receipt_of,
)
from ray_sink.staging import Staging
from ray_sink.uploads import Uploads

__all__ = ["Ledger", "LedgerOptions", "check_same_run"]


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """What a ledger is told about its run besides `RunInfo`.

    Attributes:
        on_conflict: what to do with another run's output under a key.
        foreign: paths and sizes that were found at the destination and in staging when the sink started; those that
            the journal knows are taken out.
        uploaders: among how many uploaders keys are shared out.
        keep_staged: staged files stay where they are after upload.
        sealed: the manifest's receipts, where the run is sealed: known keys get theirs, new ones are refused.
    """

    on_conflict: OnConflict = "error"
    foreign: Mapping[str, int] = field(default_factory=dict)
    uploaders: int = 1
    keep_staged: bool = False
    sealed: Sequence[Receipt] | None = None


class Ledger:
    """See the module's text. Made by `open`."""

    def __init__(
        self, journal: Journal, staging: Staging, book: Book, info: RunInfo, term: str, options: LedgerOptions
    ) -> None:
        self.term = term
        self.abandoned_multiparts: tuple[MultipartUpload, ...] = tuple(book.multiparts.values())
        self._journal = journal
        self._staging = staging
        self._book = book
        self._info = info
        self._options = options
        self._foreign = {path: size for path, size in options.foreign.items() if book.entries.owner_of(path) is None}
        self._uploads = Uploads(options.uploaders, self._task_of)
        self._failures: dict[str, str] = {}
        self._staged_bytes = 0
        self._fenced_by: str | None = None

    @classmethod
    def open(cls, staging: Staging, info: RunInfo, epoch: int, options: LedgerOptions) -> Ledger:
        """Begin a new life of the run's ledger: fence the older ones, read what they decided, roll it forward.

        May be repeated after a crash at any point. The caller owns `epoch`.

        Raises:
            RunMismatchError: the run id belongs to another run; nothing was changed.
            RunFencedError: a newer epoch has written here.
            JournalCorruptError: a journal is damaged.
        """
        life = begin_life(staging, info, epoch)
        for receipt in options.sealed or ():
            life.book.adopt(receipt)
        ledger = cls(life.journal, staging, life.book, info, life.term, options)
        ledger._roll_forward_older()
        ledger._free_older()
        staging.sweep(life.term)
        return ledger

    def _roll_forward_older(self) -> None:
        vanished = self._staging.roll_forward(self.term, (entry.proposal for entry in self._book.entries.pending()))
        for entry in self._book.entries.pending():
            self._staged_bytes += sum(temp.file.bytes for temp in entry.proposal.files)
        self._note_all_published(vanished)

    def _free_older(self) -> None:
        """What earlier lives uploaded last and may have died over before it was freed.

        Another run may have staged something under the name since: only what is the uploaded file goes.
        """
        if self._options.keep_staged:
            return
        for numbers in self._book.last_uploads.values():
            self._staging.free(file for file in self._files(numbers) if self._staging.holds(file))

    def unfreed(self, uploader: int) -> list[FileRecord]:
        """Staged files that an uploader of this life reported last: it may have died before it freed them."""
        return self._files(self._book.last_uploads.get((self.term, uploader), []))

    def _files(self, numbers: Iterable[int]) -> list[FileRecord]:
        return [temp.file for number in numbers for temp in self._book.entries[number].proposal.files]

    # -- deciding ----------------------------------------------------------------------------------------------------

    def decide(self, proposals: Sequence[Proposal]) -> list[Decision]:
        """Decide a batch of keys with one journal record. May be repeated with the same proposals.

        Returns:
            A decision for each proposal, in order; when it is returned, it survives a power cut.

        Raises:
            RunFencedError: a newer owner has the run.
            OSError: the journal failed; what of the batch is decided, only the next life can tell.
        """
        self._check_fence()
        batch = self._round()
        answers = [batch.judge(proposal, self.receipt) for proposal in proposals]
        tally = asdict(batch.counts)
        if batch.fresh:
            rows = [record_of(proposal) for proposal in batch.fresh.values()]
            self._write({"is": "decided", "batch": rows, "conflicts": tally})
            self._staged_bytes += sum(t.file.bytes for p in batch.fresh.values() for t in p.files)
        if batch.kept:
            left = [[key, [[f.path, f.bytes] for f in files]] for key, files in batch.kept.items()]
            self._write({"is": "kept", "batch": left, "conflicts": tally})
            # no publishing follows that would fail behind the fence
            self._check_term()
        self._book.conflicts = batch.counts
        return answers

    def _round(self) -> Round:
        batch = Round(self._book, self._options.on_conflict, self._foreign, self._info, self.term)
        batch.sealed = self._options.sealed is not None or self._book.sealing
        return batch

    def foresee(self, proposals: Sequence[Proposal]) -> list[Decision]:
        """What `decide` would say. Nothing is decided: others may be faster."""
        self._check_fence()
        batch = self._round()
        return [batch.judge(proposal, self.receipt) for proposal in proposals]

    def commit(self, uploads: Sequence[tuple[Proposal, Verification]]) -> list[Decision]:
        """Decide a batch of keys by what is at the destination already, with one journal record.

        For runs whose nodes share no staging folder: a create-only put has settled there which attempt has the name,
        and each of these is that one. May be repeated.

        Args:
            uploads: attempts, each of which is at the destination, whole, and what that proved.

        Returns:
            A decision for each, in order, with its receipt.

        Raises:
            RunFencedError: a newer owner has the run.
            OSError: the journal failed; what of the batch is decided, only the next life can tell.
        """
        self._check_fence()
        batch = self._round()
        proofs = {(proposal.key, proposal.attempt): proof for proposal, proof in uploads}
        answers = [batch.judge(proposal, self.receipt) for proposal, _ in uploads]
        if batch.fresh:
            rows = [record_of(proposal) for proposal in batch.fresh.values()]
            proven = [proofs[key, proposal.attempt] for key, proposal in batch.fresh.items()]
            self._write({"is": "committed", "batch": rows, "proofs": proven, "conflicts": asdict(batch.counts)})
        self._book.conflicts = batch.counts
        return [
            answer if answer.winner is None else replace(answer, receipt=self.receipt(answer.key)) for answer in answers
        ]

    # -- after the decision ------------------------------------------------------------------------------------------

    def published(self, attempts: Iterable[tuple[str, str]]) -> list[FileRecord]:
        """Note that decided attempts, as (key, attempt), are under their final names, durably.

        Returns:
            Files of theirs that are uploaded already, and may have been freed before they got their names once more:
            to be freed.
        """
        late: list[FileRecord] = []
        for key, attempt in attempts:
            entry = self._book.entries.get(key)
            if entry is None or entry.proposal.attempt != attempt or entry.published:
                continue
            if entry.uploaded is None:
                self._note_published(entry)
            elif not self._options.keep_staged:
                late += self._files([entry.number])
        return late

    def _note_published(self, entry: Entry) -> None:
        self._book.entries.publish(entry.number)
        if self._info.dest is not None:
            self._uploads.add(entry.proposal.key)

    def publish_rest(self) -> None:
        """Roll forward what is decided and not known to be published: its writer died in between.

        Raises:
            RunFencedError: a newer owner has the run.
        """
        vanished = self._staging.publish([entry.proposal for entry in self._book.entries.pending()])
        if vanished:
            self._check_term()
        self._note_all_published(vanished)

    def _note_all_published(self, vanished: Iterable[str]) -> None:
        """All that is pending has been published, except for what has `vanished`."""
        gone = set(vanished)
        for entry in self._book.entries.pending():
            # an older life's may be uploaded and freed without our knowing: the uploader looks before it says lost
            ours = self._info.dest is None or entry.decided[0] == self.term
            if ours and entry.proposal.key in gone:
                self._failures[entry.proposal.key] = "its decided files are gone from the staging folder"
            else:
                self._note_published(entry)

    def bytes_of(self, keys: Iterable[str]) -> int:
        """Size of the files of these keys, in bytes."""
        found = (self._book.entries.get(key) for key in keys)
        return sum(temp.file.bytes for entry in found if entry is not None for temp in entry.proposal.files)

    def is_uploaded(self, key: str) -> bool:
        """Whether `key` needs no upload any more."""
        number = self._book.entries.number_of(key)
        return key in self._book.kept if number is None else self._book.entries.proof_of(number) is not None

    def proof(self, key: str) -> Verification:
        """What the upload of `key` proved; only for one that is uploaded."""
        number = self._book.entries.number_of(key)
        proof = None if number is None else self._book.entries.proof_of(number)
        assert proof is not None, f"{key!r} is not uploaded"
        return proof

    def receipt(self, key: str) -> Receipt | None:
        """The one receipt of `key`, or None while it is not published."""
        entry = self._book.entries.get(key)
        if entry is None:
            return kept_receipt(key, self._book.kept[key], self._info) if key in self._book.kept else None
        return self._receipt(entry)

    def _receipt(self, entry: Entry) -> Receipt | None:
        if entry.uploaded is not None:
            return receipt_of(entry.proposal, State.UPLOADED, self._info.dest or "", entry.uploaded)
        if entry.published:
            return receipt_of(entry.proposal, State.STAGED, self._info.staging)
        return None

    # -- uploading ---------------------------------------------------------------------------------------------------

    def take_uploads(
        self, uploader: int, *, holding: Set[str] = frozenset(), max_outputs: int, max_bytes: int
    ) -> list[UploadTask]:
        """Hand published outputs to an uploader; at least one, however large, when there is one.

        Args:
            uploader: its index.
            holding: keys that it has already. What it was given otherwise never reached it and is given again.
            max_outputs: at most so many.
            max_bytes: at most so many bytes, except for the first.
        """
        return self._uploads.take(uploader, holding, max_outputs, max_bytes)

    def _task_of(self, key: str) -> UploadTask:
        entry = self._book.entries.get(key)
        assert entry is not None
        files = tuple(temp.file for temp in entry.proposal.files)
        return UploadTask(key, entry.proposal.attempt, files, replace=self._options.on_conflict == "replace")

    def multipart_started(self, upload: MultipartUpload) -> None:
        """Journal a multipart upload before its first part is sent."""
        self._write({"is": "multipart", "path": upload.path, "upload_id": upload.upload_id})

    @property
    def open_multiparts(self) -> tuple[MultipartUpload, ...]:
        """Those begun in any life of which nobody has said that they are over: their uploaders may have died."""
        return tuple(self._book.multiparts.values())

    def multipart_aborted(self, upload: MultipartUpload) -> None:
        """Journal that an upload of `abandoned_multiparts` is gone."""
        self._write({"is": "aborted", "upload_id": upload.upload_id})

    def uploaded(self, outcomes: Sequence[UploadOutcome]) -> list[FileRecord]:
        """Journal a batch of uploads with one record; failed ones become failures of the run. May be repeated.

        Returns:
            Staged files that may be freed now.
        """
        self._check_fence()
        batch: dict[tuple[str, int, str], list[int]] = {}
        done: dict[str, Entry] = {}
        again: dict[str, Entry] = {}
        for outcome in outcomes:
            self._uploads.done(outcome.key)
            entry = self._book.entries.get(outcome.key)
            if entry is None or outcome.attempt != entry.proposal.attempt:
                continue
            if entry.uploaded or outcome.key in done:
                if outcome.error is None:
                    again[outcome.key] = entry  # our answer was lost on the way
                continue
            if outcome.error is not None:
                self._failures[outcome.key] = str(outcome.error)
            elif outcome.verification is not None:
                term, seq, index = entry.decided
                batch.setdefault((term, seq, outcome.verification), []).append(index)
                done[outcome.key] = entry
        if batch:
            rows = [[term, seq, sorted(indices), how] for (term, seq, how), indices in batch.items()]
            uploader = self._uploads.uploader_of(next(iter(done)))
            counts = asdict(self._book.conflicts)
            self._write({"is": "uploaded", "batch": rows, "uploader": uploader, "conflicts": counts})
        for entry in done.values():
            self._failures.pop(entry.proposal.key, None)
            self._staged_bytes -= sum(temp.file.bytes for temp in entry.proposal.files)
        return [temp.file for entry in (again | done).values() for temp in entry.proposal.files]

    # -- producers and datasets --------------------------------------------------------------------------------------

    def producer_opened(self, name: str) -> None:
        """A producer took a handle; the run cannot be sealed until it says goodbye."""
        self._write({"is": "producer", "name": name})

    def producer_closed(self, name: str, tickets: int, failures: Mapping[str, str]) -> None:
        """A producer's goodbye, with the number of tickets it issued and the keys that failed it, by reason."""
        self._write({"is": "goodbye", "name": name, "tickets": tickets, "failures": dict(failures)})

    def failed(self, failures: Mapping[str, str]) -> None:
        """Outputs that failed, reason by key; a key that is committed after all is no failure any more."""
        if not failures.items() <= self._book.failures.items():
            self._write({"is": "failed", "failures": dict(failures)})

    def dataset(self, dataset_id: str, state: DatasetState, reason: str | None = None) -> None:
        """A dataset began or ended; once complete it stays so, however often it is run again."""
        known = self._book.datasets.get(dataset_id)
        if known is None or known.state is not DatasetState.COMPLETE:
            self._write({"is": "dataset", "id": dataset_id, "state": state.value, "reason": reason})

    def rows(self, dataset_id: str, part: str, rows: RowCounts) -> None:
        """Rows of one part of a dataset; a part that comes again counts once."""
        if self._book.parts.get((dataset_id, part)) != rows:
            self._write({"is": "rows", "id": dataset_id, "part": part, "rows": asdict(rows)})

    def close_sources(self, sources: Sequence[str]) -> None:
        """Input rows all of whose outputs are decided; one that comes again does no harm."""
        self._write({"is": "sources", "batch": list(sources)})

    # -- the whole ---------------------------------------------------------------------------------------------------

    def closing(self) -> None:
        """The driver has come to its end with nothing unfinished; whoever finds the run now may seal it."""
        if not self._book.closing:
            self._write({"is": "closing"})

    def begin_sealing(self) -> None:
        """The caller is going to seal. When all is committed new keys are refused from now on, in later lives too.

        Raises:
            RunFencedError: a newer owner has the run, and may have decided more than this one knows.
        """
        if not self._book.sealing and not self.status().failures:
            self._write({"is": "sealing"})
        self._check_term()

    def _check_term(self) -> None:
        """Once this has passed, whatever was journaled before will be known to all lives to come."""
        if self._staging.terms.is_fenced(self.term):
            raise RunFencedError(f"run {self._info.run_id!r} was taken over")

    def fence(self, by: str) -> None:
        """Refuse everything from now on: a newer owner has the run."""
        self._fenced_by = by

    def _check_fence(self) -> None:
        if self._fenced_by is not None:
            raise RunFencedError(f"run {self._info.run_id!r} was taken over by {self._fenced_by}")

    def _write(self, record: dict[str, object]) -> None:
        self._check_fence()
        self._book.apply(record, self._journal.append(record))

    def status(self) -> RunStatus:
        """Where the run stands."""
        failures = {
            key: reason
            for key, reason in {**self._book.failures, **self._failures}.items()
            if key in self._failures or not (key in self._book.entries or key in self._book.kept)
        }
        return RunStatus(
            decided=len(self._book.entries),
            staged=self._book.entries.published,
            uploaded=self._book.entries.uploaded,
            staged_bytes=self._staged_bytes,
            failures=failures,
            open_producers=tuple(self._book.open_producers()),
            unfinished=tuple(self._book.unfinished()),
            rows=self._book.rows(),
            conflicts=self._book.conflicts,
        )

    @property
    def failures(self) -> Mapping[str, str]:
        """Reason by key, for decided outputs that could not be committed."""
        return self._failures

    @property
    def staged_bytes(self) -> int:
        """Bytes of decided outputs that are not uploaded."""
        return self._staged_bytes

    def has_uploads(self, uploader: int, holding: Set[str]) -> bool:
        """Whether `take_uploads` has something for this uploader."""
        return self._uploads.has(uploader, holding)

    def has_unfinished_uploads(self) -> bool:
        """Whether any output waits for its upload or is on its way."""
        return self._uploads.unfinished

    def receipts(self) -> Iterator[Receipt]:
        """The receipts of all that is committed, by key; the manifest's rows.

        Raises:
            StagingError: a decided key is not published; call `publish_rest` first.
        """
        for key in sorted({*self._book.entries, *self._book.kept} - self._failures.keys()):
            receipt = self.receipt(key)
            if receipt is None:
                raise StagingError(f"key {key!r} is decided and not published")
            yield receipt

    def keys(self) -> Iterator[str]:
        """All keys that are decided or kept: computing them again is in vain."""
        yield from self._book.entries
        yield from self._book.kept

    def closed_sources(self) -> bytes:
        """Hashes of all closed sources, one behind the other; see `ray_sink.keys.hash_keys`."""
        return bytes(self._book.sources)

    def close(self) -> None:
        """Close the journal; what follows belongs to the next life."""
        self._journal.close()
