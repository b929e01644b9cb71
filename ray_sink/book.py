"""What a run's journal adds up to: every key with its decided attempt, and all else that close() must know.

The records, by their one name each (a file holds any number of them after its ``open``):

=============  =========================================================================================
``open``       first in each file: run, epoch, term, how many bytes of each older file count, and again the
               record that follows these: its writer may have died between its write and its fsync
``decided``    a batch of ``[key, attempt, source, notes, [[temp, path, bytes, checksum], …]]``
``committed``  a batch as of ``decided``, of outputs that are at the destination already, and what each upload proved
``kept``       a batch of ``[key, [[path, bytes], …]]`` where another run's output stayed
``uploaded``   a batch of ``[term, seq of the decided record, [index, …], verification]``, and whose uploader's it is
``multipart``  path and upload id of a multipart upload that is about to send its first part
``aborted``    upload id of a multipart upload that is gone
``failed``     failures of outputs, reason by key, that the run may go on without
``producer``   a producer's name; ``goodbye``: its name, its number of tickets, its failures
``dataset``    a dataset's id and state; ``rows``: the row counts of one of its parts
``sources``    names of input rows all of whose outputs are decided, where a run goes by them
``closing``    the driver came to its ``close()`` with nothing unfinished: only uploads and the seal are left
``sealing``    all is decided and uploaded, and a seal is under way: there will be no new keys
=============  =========================================================================================

``decided``, ``committed`` and ``uploaded`` records also carry the conflict counts so far. Readers skip records that
they do not know the name of only if its name begins with ``x-``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from ray_sink.entries import Entries, record_of
from ray_sink.errors import JournalCorruptError
from ray_sink.filesystem import Filesystem
from ray_sink.journal import read_journal
from ray_sink.keys import hash_keys
from ray_sink.records import (
    ConflictCounts,
    FileRecord,
    MultipartUpload,
    Proposal,
    Receipt,
    RowCounts,
    RunInfo,
    State,
    TempFile,
    Verification,
)


class DatasetState(StrEnum):
    """How a dataset that runs through the sink stands."""

    OPEN = "open"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


@dataclass(slots=True)
class Dataset:
    """One dataset that runs through the sink; `reason` says why it is incomplete."""

    epoch: int
    state: DatasetState
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JournalPart:
    """A journal file and how much of it counts."""

    name: str
    bytes: int


class Book:
    """The sum of the records. `apply` is the only way in, for live records and for those read back alike."""

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.epoch = 0
        self.term = ""
        self.entries = Entries()
        self.kept: dict[str, tuple[FileRecord, ...]] = {}
        self.multiparts: dict[str, MultipartUpload] = {}
        self.last_uploads: dict[tuple[str, int], list[int]] = {}
        self.producers: dict[str, int] = {}
        self.goodbyes: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.datasets: dict[str, Dataset] = {}
        self.parts: dict[tuple[str, str], RowCounts] = {}
        self.sources = bytearray()  # of each its hash, see `hash_keys`
        self.conflicts = ConflictCounts()
        self.closing = False
        self.sealing = False

    def apply(self, record: Mapping[str, Any], seq: int) -> None:
        """Take in one record.

        Raises:
            JournalCorruptError: the record means nothing to this version.
        """
        name = record.get("is")
        method = getattr(self, f"_apply_{name}", None)
        if method is None:
            if isinstance(name, str) and name.startswith("x-"):
                return
            raise JournalCorruptError(f"journal record of unknown kind {name!r}: written by a newer version?")
        method(record, seq)

    def _apply_open(self, record: Mapping[str, Any], seq: int) -> None:
        if (again := record["again"]) is not None:
            self.epoch, self.term = again["epoch"], again["term"]
            self.apply(again["record"], again["seq"])
        self.info = RunInfo(**record["run"])
        self.epoch, self.term = record["epoch"], record["term"]

    def _apply_decided(self, record: Mapping[str, Any], seq: int) -> None:
        self.closing = False
        self.entries.append(self.term, seq, record["batch"])
        self._count_conflicts(record)

    def _apply_committed(self, record: Mapping[str, Any], seq: int) -> None:
        self._apply_decided(record, seq)
        for index, proof in enumerate(record["proofs"]):
            self._uploaded(self.term, seq, [index], Verification(proof))

    def _count_conflicts(self, record: Mapping[str, Any]) -> None:
        self.conflicts = ConflictCounts(**record["conflicts"])

    def _apply_kept(self, record: Mapping[str, Any], seq: int) -> None:
        for key, files in record["batch"]:
            self.kept[key] = tuple(FileRecord(path, size, "") for path, size in files)
        self._count_conflicts(record)

    def _apply_uploaded(self, record: Mapping[str, Any], seq: int) -> None:
        # an uploader frees these before it reports others
        last = self.last_uploads[self.term, record["uploader"]] = []
        for term, decided_seq, indices, verification in record["batch"]:
            last += self._uploaded(term, decided_seq, indices, Verification(verification))
        self._count_conflicts(record)

    def _uploaded(self, term: str, seq: int, indices: Sequence[int], proof: Verification) -> list[int]:
        numbers = self.entries.upload(term, seq, indices, proof)
        if self.multiparts:
            paths = {temp.file.path for number in numbers for temp in self.entries[number].proposal.files}
            # of each the one that was begun last; those before it were left by uploaders that died
            last = {upload.path: upload.upload_id for upload in self.multiparts.values() if upload.path in paths}
            for upload_id in last.values():
                del self.multiparts[upload_id]
        return numbers

    def _apply_sealing(self, record: Mapping[str, Any], seq: int) -> None:
        self.sealing = True

    def _apply_multipart(self, record: Mapping[str, Any], seq: int) -> None:
        upload = MultipartUpload(record["path"], record["upload_id"])
        self.multiparts[upload.upload_id] = upload

    def _apply_aborted(self, record: Mapping[str, Any], seq: int) -> None:
        self.multiparts.pop(record["upload_id"], None)

    def _apply_producer(self, record: Mapping[str, Any], seq: int) -> None:
        self.closing = False
        self.producers[record["name"]] = self.epoch

    def _apply_goodbye(self, record: Mapping[str, Any], seq: int) -> None:
        self.producers.pop(record["name"], None)
        self.goodbyes[record["name"]] = self.epoch
        self.failures.update(record["failures"])

    def _apply_failed(self, record: Mapping[str, Any], seq: int) -> None:
        self.failures.update(record["failures"])

    def _apply_dataset(self, record: Mapping[str, Any], seq: int) -> None:
        self.closing = False
        self.datasets[record["id"]] = Dataset(self.epoch, DatasetState(record["state"]), record["reason"])

    def _apply_rows(self, record: Mapping[str, Any], seq: int) -> None:
        self.parts[record["id"], record["part"]] = RowCounts(**record["rows"])

    def _apply_sources(self, record: Mapping[str, Any], seq: int) -> None:
        self.sources += hash_keys(record["batch"]).tobytes()

    def _apply_closing(self, record: Mapping[str, Any], seq: int) -> None:
        self.closing = True

    def adopt(self, receipt: Receipt) -> None:
        """Take in a sealed run's receipt: the journal may be gone, the manifest is the truth."""
        if receipt.state is State.KEPT:
            self.kept.setdefault(receipt.key, receipt.files)
        elif receipt.key not in self.entries:
            temps = tuple(TempFile("", replace(file, uri=None)) for file in receipt.files)
            proposal = Proposal(receipt.key, receipt.attempt, temps, notes=receipt.notes)
            self.entries.append("", len(self.entries), [record_of(proposal)])
            self.entries.upload("", len(self.entries) - 1, [0], receipt.verification or Verification.SIZE_CHECKED)

    def unfinished(self) -> list[str]:
        """Why the run, as this epoch ran it, cannot be sealed; empty when it can.

        What an older epoch left open counts until this epoch has done work of the same kind: a restarted script
        does everything again, a script that only opens and closes the run does not.
        """
        reasons = [
            f"dataset {name} {'was never run to its end' if d.state is DatasetState.OPEN else d.reason}"
            for name, d in self.datasets.items()
            if d.epoch == self.epoch and d.state is not DatasetState.COMPLETE
        ]
        ran = any(d.epoch == self.epoch for d in self.datasets.values())
        left = any(d.epoch < self.epoch and d.state is not DatasetState.COMPLETE for d in self.datasets.values())
        # a driver that came to its end with nothing unfinished has answered for all before it
        ended = self.closing or self.sealing
        if left and not (ran or ended):
            reasons.append("an earlier driver left a dataset unfinished, and this one ran none: run the script again")
        reasons += [f"producer {name} never closed its handle" for name in self.open_producers()]
        wrote = any(epoch == self.epoch for epoch in self.goodbyes.values())
        if any(epoch < self.epoch for epoch in self.producers.values()) and not (wrote or ran or ended):
            reasons.append("producers of an earlier driver never closed their handles, and this driver had none")
        return reasons

    def open_producers(self) -> list[str]:
        """Names of this epoch's producers that have not said goodbye."""
        return [name for name, epoch in self.producers.items() if epoch == self.epoch]

    def rows(self) -> RowCounts:
        """Row counts of the datasets of the newest epoch that ran any: a later one may only upload and seal."""
        newest = max((dataset.epoch for dataset in self.datasets.values()), default=self.epoch)
        mine = {name for name, dataset in self.datasets.items() if dataset.epoch == newest}
        return sum((rows for (name, _), rows in self.parts.items() if name in mine), RowCounts())


BookT = TypeVar("BookT", bound=Book)


@dataclass(slots=True)
class History(Generic[BookT]):
    """A run's journals, read back.

    Attributes:
        book: their sum.
        parts: the files that count and how far, oldest first; without the last record.
        again: the last record, for the next ``open``: with its epoch, term and sequence number.
        names: every journal file that is there, also those that do not count.
    """

    book: BookT
    parts: list[JournalPart] = field(default_factory=list)
    again: dict[str, Any] | None = None
    names: list[str] = field(default_factory=list)


def read_history(fs: Filesystem, journal_dir: Path, *, live: bool = False) -> History[Book]:
    """Read what a run decided; see `read_into`."""
    return read_into(Book(), fs, journal_dir, live=live)


def read_into(book: BookT, fs: Filesystem, journal_dir: Path, *, live: bool = False) -> History[BookT]:
    """Read what a run decided into an empty book.

    The newest file that has its ``open`` record says which older files count and how far: what a fenced ledger wrote
    behind its successor's back is not among them, and was never acknowledged.

    Args:
        book: takes in the records.
        fs: the staging filesystem.
        journal_dir: the run's journal folder; may be missing.
        live: a ledger may be writing (the command line looks on): stop at what does not make sense yet.

    Raises:
        JournalCorruptError: a record is damaged.
    """
    history = History(book, names=fs.list(journal_dir))
    for name in reversed(history.names):
        records = read_journal(fs.read(journal_dir / name), name=name, live=live)
        first = next(records, None)
        if first is None:
            continue  # this life of the ledger died before its first word: it decided nothing
        for part in first.payload["parts"]:
            older = JournalPart(*part)
            try:
                old = fs.read(journal_dir / older.name)
            except FileNotFoundError as error:
                raise JournalCorruptError(f"journal {older.name} is gone; journal {name} builds on it") from error
            for record in read_journal(old, name=older.name, end=older.bytes):
                book.apply(record.payload, record.seq)
            history.parts.append(older)
        book.apply(first.payload, first.seq)
        # one at a time: all of a file's records together are many times its size
        last, before = first, first
        for record in records:
            book.apply(record.payload, record.seq)
            last, before = record, last
        if last is first:
            history.again = first.payload["again"]
        else:
            history.parts.append(JournalPart(name, before.end))
            history.again = {"epoch": book.epoch, "term": book.term, "seq": last.seq, "record": last.payload}
        break
    return history


def read_info(fs: Filesystem, journal_dir: Path) -> RunInfo | None:
    """Which run the journals are of, by the newest file that says so; the rest is not looked at."""
    for name in reversed(fs.list(journal_dir)):
        first = next(read_journal(fs.read(journal_dir / name), name=name), None)
        if first is not None:
            return RunInfo(**first.payload["run"])
    return None


def open_record(info: RunInfo, epoch: int, term: str, history: History[Book]) -> dict[str, Any]:
    """The first record of a journal file, which goes on where `history` ends."""
    return {
        "is": "open",
        "version": 1,
        "run": asdict(info),
        "epoch": epoch,
        "term": term,
        "parts": [[part.name, part.bytes] for part in history.parts],
        "again": history.again,
    }
