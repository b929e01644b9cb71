"""The plain data that crosses processes. Frozen, picklable, no behaviour beyond arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any

from ray_sink.errors import SinkError


class _Record:
    """What is made of its fields: pickled as that, records take half the time that frozen dataclasses do."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        kind: Any = type(self)
        return kind, _fields(kind)(self)


@cache
def _fields(kind: type) -> Callable[[object], tuple[Any, ...]]:
    return attrgetter(*kind.__match_args__)  # type: ignore[attr-defined]  # a dataclass of two fields and more


class State(StrEnum):
    """How far an output has come. Each state implies the ones before it."""

    STAGED = "staged"
    """Complete and fsynced under its final name in the staging folder."""
    UPLOADED = "uploaded"
    """The object store holds exactly these bytes and said so."""
    KEPT = "kept"
    """Another run's output was there first and ``on_conflict="keep"`` left it; ours was dropped."""


class Verification(StrEnum):
    """What an upload can prove."""

    VERIFIED = "verified"
    """The server checked the bytes against our checksum."""
    SIZE_CHECKED = "size checked"
    """The server reported the right size; it does not check checksums."""


@dataclass(frozen=True, slots=True)
class FileRecord(_Record):
    """One file of an output.

    Attributes:
        path: relative POSIX path, the same below the staging folder and below the destination.
        bytes: size in bytes.
        checksum: ``"crc64nvme:"`` and 16 hex digits over the whole file.
        uri: where the file is to be found now; filled in when a receipt is made.
        member: name inside the file, where one file holds many outputs.
        offset: first byte of this output's part, in bytes.
        length: length of this output's part, in bytes.
    """

    path: str
    bytes: int
    checksum: str
    uri: str | None = None
    member: str | None = None
    offset: int | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt(_Record):
    """A durable fact about one output.

    Attributes:
        key: the user's key.
        attempt: the attempt that won.
        state: how far it has come.
        files: its files; one, except with ``DictMode.SPLIT``.
        verification: what the upload proved; None until uploaded.
        notes: what differs from the value handed in, e.g. ``"x: bfloat16 stored as float32"``.
    """

    key: str
    attempt: str
    state: State
    files: tuple[FileRecord, ...]
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class TempFile(_Record):
    """A complete, fsynced file under a temp name, waiting for the decision.

    Attributes:
        temp: ``<term>/<name>`` below the run's temp folder.
        file: what it becomes when its attempt wins.
    """

    temp: str
    file: FileRecord


@dataclass(frozen=True, slots=True)
class Proposal(_Record):
    """One attempt, ready to be decided.

    Attributes:
        key: the user's key.
        attempt: unique id of this try; a resubmission is a new attempt.
        files: its temp files, in the order of its outputs.
        source: identity of the input row, where it is known; two sources under one key are a
            `DuplicateKeyError` and no retry.
        notes: see `Receipt.notes`.
    """

    key: str
    attempt: str
    files: tuple[TempFile, ...]
    source: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision(_Record):
    """The ledger's answer to one proposal.

    Exactly one of `winner` and `error` is set, except for `State.KEPT`, where `receipt` alone is.

    Attributes:
        key: the key asked about.
        winner: the attempt that has the key, ours or an earlier one. Whoever reads this publishes it
            (publishing twice is harmless) unless `receipt` is set, then drops its own temps if it lost.
        receipt: the winner's receipt, when it is known to be published already.
        error: why the key cannot be had.
    """

    key: str
    winner: Proposal | None = None
    receipt: Receipt | None = None
    error: SinkError | None = None


@dataclass(frozen=True, slots=True)
class UploadTask(_Record):
    """One published output on its way to the store.

    Attributes:
        key: the user's key.
        attempt: the decided attempt.
        files: staged files, by `FileRecord.path` below the staging root.
        replace: overwrite an object found under the name (``on_conflict="replace"``).
        at: where the one file lies, if not under its `FileRecord.path`.
        adopt: what another attempt of this run has put there first has the name, and is the outcome.
    """

    key: str
    attempt: str
    files: tuple[FileRecord, ...]
    replace: bool = False
    at: str | None = None
    adopt: bool = False

    @property
    def bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class UploadOutcome(_Record):
    """What became of one `UploadTask`; exactly one of `verification` and `error` is set.

    Attributes:
        key: the user's key.
        attempt: the decided attempt.
        verification: the weakest proof among its files.
        error: why it failed for good, after the retries.
        file: what is there instead, where `attempt` is another one than the task's; see `UploadTask.adopt`.
    """

    key: str
    attempt: str
    verification: Verification | None = None
    error: SinkError | None = None
    file: FileRecord | None = None


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """A multipart upload that the journal knows of, so that it can be aborted after a crash.

    Attributes:
        path: the object's path relative to the destination.
        upload_id: the store's id.
    """

    path: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What identifies a run; journaled first, compared when the run is opened again.

    Attributes:
        run_id: the run's name.
        dest: destination URL without credentials, or None where staging is the destination.
        staging: the staging folder.
        save_format: name of the format.
        dict_mode: name of the dict mode.
        fingerprint: the user's fingerprint of model and code.
    """

    run_id: str
    dest: str | None
    staging: str
    save_format: str
    dict_mode: str
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Rows of the datasets that ran through the sink.

    Attributes:
        rows_in: rows that reached the sink's stages.
        rows_out: rows that came back with receipts.
        rows_skipped: rows taken out beforehand because their key was committed.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_skipped: int = 0

    def __add__(self, other: RowCounts) -> RowCounts:
        """Sum field by field."""
        return RowCounts(
            self.rows_in + other.rows_in,
            self.rows_out + other.rows_out,
            self.rows_skipped + other.rows_skipped,
        )


@dataclass(frozen=True, slots=True)
class ConflictCounts:
    """How often the sink had to choose.

    Attributes:
        retries: later attempts of a decided key whose bytes were the same.
        retries_differing: later attempts whose bytes differed from the winner's; the winner stayed.
        replaced: another run's objects that ours replaced.
        kept: another run's objects that stayed.
    """

    retries: int = 0
    retries_differing: int = 0
    replaced: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A snapshot of the ledger.

    Attributes:
        decided: keys decided.
        staged: decided keys that are published and not uploaded.
        uploaded: keys uploaded.
        staged_bytes: bytes in the staging folder that wait for upload or for being freed.
        failures: reason by key, for outputs that could not be committed.
        open_producers: names of producers that have not said goodbye.
        unfinished: why the run cannot be sealed yet, besides outputs under way; empty when it can.
        rows: row counts reported so far.
        conflicts: conflict counts so far.
    """

    decided: int = 0
    staged: int = 0
    uploaded: int = 0
    staged_bytes: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    open_producers: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    rows: RowCounts = field(default_factory=RowCounts)
    conflicts: ConflictCounts = field(default_factory=ConflictCounts)


def receipt_of(proposal: Proposal, state: State, base_uri: str, verification: Verification | None = None) -> Receipt:
    """The receipt for a decided attempt whose files are found below `base_uri`."""
    files = tuple(_below(base_uri, temp.file) for temp in proposal.files)
    return Receipt(proposal.key, proposal.attempt, state, files, verification, proposal.notes)


def uploaded_receipt(staged: Receipt, base_uri: str, verification: Verification) -> Receipt:
    """The receipt of what was `staged`, once it is below `base_uri`."""
    files = tuple(_below(base_uri, file) for file in staged.files)
    return Receipt(staged.key, staged.attempt, State.UPLOADED, files, verification, staged.notes)


def _below(base_uri: str, file: FileRecord) -> FileRecord:
    uri = join_uri(base_uri, file.path)
    return FileRecord(file.path, file.bytes, file.checksum, uri, file.member, file.offset, file.length)


def join_uri(base: str, path: str) -> str:
    """`path` below `base`, which is a URL or an absolute folder."""
    return f"{base.rstrip('/')}/{path}"
