"""The sealed set of receipts of a run, and the one object that says so.

Below the destination (or the staging folder, where that is the destination)::

    _ray_sink/<run>/manifest-<epoch>-<hash>.parquet    one row a key; any number of files
    _ray_sink/<run>/_SUCCESS                           JSON, created once, last; names the manifest files
    _ray_sink/<run>/_PARTIAL                           the same of a run that went on without some outputs, which it
                                                       names; replaced by the next try, gone once it is complete
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ray_sink.errors import ObjectExistsError, ObjectMissingError, RunError, RunFencedError, StoreError
from ray_sink.keys import RESERVED
from ray_sink.records import (
    ConflictCounts,
    FileRecord,
    Receipt,
    RowCounts,
    RunInfo,
    RunStatus,
    State,
    Verification,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_sink.stores.base import SmallObjects

SUCCESS: Final = "_SUCCESS"
PARTIAL: Final = "_PARTIAL"
_ROWS_A_FILE: Final = 1_000_000
_ROWS_A_GROUP: Final = 2**16
_ROWS_AT_A_TIME: Final = 2**12
_FIELDS: Final = ("key", "attempt", "state", "verification", "bytes", "notes")
_FILE_FIELDS: Final = ("path", "uri", "bytes", "checksum", "member", "offset", "length")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One Parquet file of a manifest; `path` is relative to the destination."""

    path: str
    bytes: int
    outputs: int

    @property
    def content(self) -> str:
        """The same for files with the same rows, whoever wrote them."""
        return self.path.rpartition("-")[2]


@dataclass(frozen=True, slots=True)
class Seal:
    """What ``_SUCCESS`` or ``_PARTIAL`` says.

    Attributes:
        run: the run.
        epoch: its last owner.
        manifest: its manifest files.
        outputs: number of keys.
        files: number of files.
        total_bytes: size of all files together, in bytes.
        verification: the weakest proof among the uploads; None where nothing was uploaded.
        rows: rows that went in, came out and were skipped, in the datasets of the last epoch that ran any.
        conflicts: how often the sink had to choose.
        failures: reason by key, for outputs that are not among them; none in ``_SUCCESS``.
    """

    run: RunInfo
    epoch: int
    manifest: tuple[ManifestFile, ...]
    outputs: int
    files: int
    total_bytes: int
    verification: Verification | None
    rows: RowCounts
    conflicts: ConflictCounts
    failures: Mapping[str, str] = field(default_factory=dict)

    def has_content_of(self, other: Seal) -> bool:
        """Whether both seal the same outputs of the same run: its rows may be counted otherwise."""
        mine, theirs = ([file.content for file in seal.manifest] for seal in (self, other))
        return (self.run, mine) == (other.run, theirs)

    def to_json(self) -> bytes:
        """As ``_SUCCESS`` holds it."""
        return json.dumps({"version": 1, **asdict(self)}, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Seal:
        """The inverse of `to_json`.

        Raises:
            RunError: this is not a seal, or one of a newer version.
        """
        try:
            raw = json.loads(data)
            if raw.pop("version") != 1:
                raise RunError("_SUCCESS was written by a newer version of ray_sink: upgrade to read it")
            return cls(
                run=RunInfo(**raw.pop("run")),
                manifest=tuple(ManifestFile(**file) for file in raw.pop("manifest")),
                verification=Verification(v) if (v := raw.pop("verification")) else None,
                rows=RowCounts(**raw.pop("rows")),
                conflicts=ConflictCounts(**raw.pop("conflicts")),
                **raw,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"_SUCCESS or _PARTIAL cannot be read: {error}") from error


def run_path(run_id: str, name: str) -> str:
    """Path of one of the run's own objects below the destination."""
    return f"{RESERVED}/{run_id}/{name}"


def read_seal(store: SmallObjects, run_id: str) -> Seal | None:
    """The run's seal, or None while it is not sealed."""
    return _read(store, run_path(run_id, SUCCESS))


def read_partial_seal(store: SmallObjects, run_id: str) -> Seal | None:
    """What a run left that went on without some outputs, or None."""
    return _read(store, run_path(run_id, PARTIAL))


def _read(store: SmallObjects, path: str) -> Seal | None:
    try:
        return Seal.from_json(store.get_bytes(path))
    except ObjectMissingError:
        return None


def seal(
    store: SmallObjects,
    run: RunInfo,
    epoch: int,
    receipts: Iterable[Receipt],
    status: RunStatus,
) -> Seal:
    """Write the manifest, then ``_SUCCESS``. May be repeated after a crash at any point; the caller owns `epoch`.

    The owner before may have been about to seal when its run was taken over: its seal of the same outputs stays, and is
    returned. With failures it is ``_PARTIAL``: no commit point, the same run may go on later.

    Args:
        store: the destination.
        run: the run.
        epoch: the caller's epoch.
        receipts: all receipts of the run, ordered by key, in their last state.
        status: its rows, conflicts and failures go into the record.

    Raises:
        RunFencedError: somebody else sealed the run with another content.
    """
    files: list[ManifestFile] = []
    counted = _Counted(receipts)
    while not files or counted.more():
        files.append(_put_manifest_file(store, run, epoch, counted))
    proofs = counted.proofs
    verification = next((v for v in (Verification.SIZE_CHECKED, Verification.VERIFIED) if v in proofs), None)
    made = Seal(
        run=run,
        epoch=epoch,
        manifest=tuple(files),
        outputs=counted.outputs,
        files=counted.files,
        total_bytes=counted.bytes,
        verification=verification,
        rows=status.rows,
        conflicts=status.conflicts,
        failures=status.failures,
    )
    if made.failures:
        store.put_bytes(run_path(run.run_id, PARTIAL), made.to_json(), replace=True)
        return made
    try:
        store.put_bytes(run_path(run.run_id, SUCCESS), made.to_json(), replace=False)
    except ObjectExistsError:
        # our own put whose reply was lost, or another's
        found = read_seal(store, run.run_id)
        if found is None or not found.has_content_of(made):
            raise RunFencedError(
                f"run {run.run_id!r} was sealed by epoch {found.epoch if found else '?'} meanwhile: open it again"
            ) from None
        with suppress(StoreError):
            for file in {file.path for file in made.manifest} - {file.path for file in found.manifest}:
                store.delete(file)
        made = found
    if read_partial_seal(store, run.run_id) is not None:
        # a store may let us put and not delete; where both are, _SUCCESS counts
        with suppress(StoreError):
            store.delete(run_path(run.run_id, PARTIAL))
    return made


class _Counted:
    """Receipts, handed on and counted; never many of them at a time."""

    def __init__(self, receipts: Iterable[Receipt]) -> None:
        self.outputs = self.files = self.bytes = 0
        self.proofs: set[Verification | None] = set()
        self._rest = iter(receipts)
        self._next = next(self._rest, None)

    def more(self) -> bool:
        return self._next is not None

    def __iter__(self) -> Iterator[Receipt]:
        while (receipt := self._next) is not None:
            self._next = next(self._rest, None)
            self.outputs += 1
            self.files += len(receipt.files)
            self.bytes += receipt.bytes
            self.proofs.add(receipt.verification)
            yield receipt


def _put_manifest_file(store: SmallObjects, run: RunInfo, epoch: int, receipts: _Counted) -> ManifestFile:
    before = receipts.outputs
    data = to_parquet(islice(receipts, _ROWS_A_FILE))
    name = f"manifest-{epoch:06d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    path = run_path(run.run_id, name)
    # the name tells the content, so that replacing is harmless
    store.put_bytes(path, data, replace=True)
    return ManifestFile(path, len(data), receipts.outputs - before)


def schema() -> pa.Schema:
    """Columns of a manifest: one row a key, its files as a list of structs."""
    import pyarrow as pa

    file = pa.struct(
        [
            ("path", pa.string()),
            ("uri", pa.string()),
            ("bytes", pa.int64()),
            ("checksum", pa.string()),
            ("member", pa.string()),
            ("offset", pa.int64()),
            ("length", pa.int64()),
        ]
    )
    return pa.schema(
        [
            ("key", pa.string()),
            ("attempt", pa.string()),
            ("state", pa.string()),
            ("verification", pa.string()),
            ("bytes", pa.int64()),
            ("notes", pa.list_(pa.string())),
            ("files", pa.list_(file)),
        ]
    )


def get_ready() -> None:
    """Load what `seal` needs, for which it would wait a third of a second: pyarrow, and pandas, which that loads."""
    import pyarrow as pa
    import pyarrow.parquet

    pa.array(())


def to_parquet(receipts: Iterable[Receipt]) -> bytes:
    """Receipts as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    rest = iter(receipts)
    with pq.ParquetWriter(sink, schema(), compression="zstd") as writer:
        while chunk := list(islice(rest, _ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist([row_of(receipt) for receipt in chunk], schema=schema()))
    return bytes(sink.getvalue())


def row_of(receipt: Receipt) -> dict[str, Any]:
    """A receipt as a manifest row."""
    files = [{name: getattr(file, name) for name in _FILE_FIELDS} for file in receipt.files]
    return {**{name: getattr(receipt, name) for name in _FIELDS}, "files": files}


def from_parquet(data: bytes) -> Iterator[Receipt]:
    """The inverse of `to_parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(batch_size=_ROWS_AT_A_TIME):
        for row in batch.to_pylist():
            yield receipt_from(row)


def receipt_from(row: dict[str, Any]) -> Receipt:
    """The inverse of `row_of`."""
    return Receipt(
        key=row["key"],
        attempt=row["attempt"],
        state=State(row["state"]),
        files=tuple(FileRecord(**file) for file in row["files"]),
        verification=Verification(row["verification"]) if row["verification"] else None,
        notes=tuple(row["notes"]),
    )
