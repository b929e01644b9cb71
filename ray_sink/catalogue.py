"""What there is to see: a destination's sealed runs, a staging folder's runs. Looks, and touches nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_sink.book import Book, read_history, read_into
from ray_sink.deciding import kept_receipt
from ray_sink.errors import RunError, StagingError
from ray_sink.filesystem import Filesystem
from ray_sink.keys import RESERVED
from ray_sink.manifest import SUCCESS, ManifestFile, Seal, from_parquet, read_partial_seal, read_seal, receipt_from
from ray_sink.ownership import owner_of
from ray_sink.records import Receipt, State, receipt_of
from ray_sink.staging import Staging
from ray_sink.stores.base import SmallObjects
from ray_sink.tally import Tally


def sealed_runs(store: SmallObjects) -> list[str]:
    """Ids of the sealed runs at a destination."""
    found = (info.path.split("/") for info in store.list(f"{RESERVED}/"))
    return sorted(parts[1] for parts in found if len(parts) == 3 and parts[2] == SUCCESS)


def seal_of(store: SmallObjects, run_id: str) -> Seal:
    """The seal of a run that must be sealed.

    Raises:
        RunError: it is not.
    """
    found = read_seal(store, run_id)
    if found is None:
        if (rest := read_partial_seal(store, run_id)) is not None:
            raise RunError(
                f"run {run_id!r} at {store.url} is partial: {len(rest.failures)} output(s) failed, the first of them"
                f" {next(iter(rest.failures.items()))}. Run the same script again to try them again"
            )
        raise RunError(
            f"{store.url} has no sealed run {run_id!r}: it is still under way, or ended early. Look at it with"
            " `ray-sink ls --staging PATH`; running the same script again finishes it"
        )
    return found


def manifest_receipts(store: SmallObjects, file: ManifestFile) -> Iterator[Receipt]:
    """The receipts in one manifest file, checked against what the seal and its own name say of it.

    Raises:
        RunError: it is not the file that was sealed.
        ObjectMissingError: it is gone.
    """
    return from_parquet(sealed_bytes(store, file))


def find_sealed(store: SmallObjects, seal: Seal, prefix: str) -> Iterator[Receipt]:
    """The receipts of a sealed run whose keys begin with `prefix`, in order.

    Raises:
        RunError: a manifest file is not the one that was sealed.
        ObjectMissingError: it is gone.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for manifest in seal.manifest:
        file = pq.ParquetFile(pa.BufferReader(sealed_bytes(store, manifest)))
        for number in range(file.num_row_groups):
            keys = file.metadata.row_group(number).column(0).statistics
            # in order, so that most groups need not be decoded; what would see to that itself imports pandas
            if keys is None or not keys.has_min_max or (keys.min <= prefix + "\U0010ffff" and prefix <= keys.max):
                table = file.read_row_group(number)
                yield from map(receipt_from, table.filter(pc.starts_with(table["key"], prefix)).to_pylist())


def sealed_bytes(store: SmallObjects, file: ManifestFile) -> bytes:
    """One manifest file as it was sealed.

    Raises:
        RunError: it is not the file that was sealed.
        ObjectMissingError: it is gone.
    """
    data = store.get_bytes(file.path)
    told = file.path.rpartition("-")[2].partition(".")[0]
    if len(data) != file.bytes or hashlib.sha256(data).hexdigest()[: len(told)] != told:
        raise RunError(f"{file.path} is not the file that was sealed: its bytes were changed or cut off")
    return data


@dataclass(frozen=True, slots=True)
class StagedRun:
    """Where a run stands, by its journal alone.

    Attributes:
        run_id: the run.
        dest: its destination; None where staging is.
        save_format: name of its format; None while its journal has no record.
        epoch: its last owner.
        decided: keys decided.
        uploaded: of them, keys whose upload is journaled.
        pending: of them, keys whose upload is not; none where there is no destination.
        pending_bytes: their size, in bytes.
        kept: keys under which another run's output stayed.
        multiparts: multipart uploads that were begun and not ended.
        closing: its driver had come to its end with nothing unfinished.
        unfinished: why it cannot be sealed, as its last owner left it.
        owner: who claimed the staging folder last, if it was for this run.
        released: that owner left in good order; False says only that it did not.
    """

    run_id: str
    dest: str | None
    save_format: str | None
    epoch: int
    decided: int
    uploaded: int
    pending: int
    pending_bytes: int
    kept: int
    multiparts: int
    closing: bool
    unfinished: tuple[str, ...]
    owner: str | None
    released: bool


def staged_run_ids(fs: Filesystem, root: Path) -> list[str]:
    """Ids of the runs that have a journal in a staging folder.

    Raises:
        StagingError: there is no such folder.
    """
    if not root.is_dir():
        raise StagingError(f"there is no staging folder {root}")
    return [name for name in fs.list(root / RESERVED) if fs.list(Staging(fs, root, name).journal_dir)]


def the_staged_run(fs: Filesystem, root: Path, run_id: str | None) -> str:
    """The run that is meant: the named one, or the only one.

    Raises:
        RunError: there is none, or there are several and none is named.
    """
    found = staged_run_ids(fs, root)
    if run_id is None and len(found) == 1:
        return found[0]
    if run_id in found:
        return str(run_id)
    has = f"has {', '.join(found[:10])}" if found else "has no run"
    asked = f", and not {run_id!r}" if run_id is not None else ""
    raise RunError(f"{root} {has}{asked}{': name one with --run' if len(found) > 1 else ''}")


def read_book(fs: Filesystem, root: Path, run_id: str) -> Book:
    """What a run's journal adds up to, while somebody may be writing it."""
    return read_history(fs, Staging(fs, root, run_id).journal_dir, live=True).book


def staged_run(tally: Tally, run_id: str, store: SmallObjects) -> StagedRun:
    """Where a run stands.

    Args:
        tally: its journal, counted.
        run_id: the run.
        store: its staging folder as a store, for the claims.
    """
    info = tally.info
    waits = info is not None and info.dest is not None
    found = owner_of(store)
    mine = found is not None and found.owner.run_id == run_id
    return StagedRun(
        run_id=run_id,
        dest=info.dest if info is not None else None,
        save_format=info.save_format if info is not None else None,
        epoch=tally.epoch,
        decided=tally.decided,
        uploaded=tally.uploaded,
        pending=tally.decided - tally.uploaded if waits else 0,
        pending_bytes=tally.decided_bytes - tally.uploaded_bytes if waits else 0,
        kept=len(tally.kept),
        multiparts=len(tally.multiparts),
        closing=tally.closing,
        unfinished=tuple(tally.unfinished()) if info is not None else ("its journal has no record yet",),
        owner=f"process {found.owner.pid} on {found.owner.host}" if found is not None and mine else None,
        released=found.released if found is not None and mine else False,
    )


def staged_receipts(book: Book) -> Iterator[Receipt]:
    """What a journal says of every key, in order; a key that is decided counts as staged."""
    if book.info is None:
        return
    for key in sorted({*book.entries, *book.kept}):
        entry = book.entries.get(key)
        if entry is None:
            yield kept_receipt(key, book.kept[key], book.info)
        elif entry.uploaded is not None:
            yield receipt_of(entry.proposal, State.UPLOADED, book.info.dest or "", entry.uploaded)
        else:
            yield receipt_of(entry.proposal, State.STAGED, book.info.staging)


def find_staged(fs: Filesystem, root: Path, run_id: str, prefix: str) -> Tally:
    """A run's journal, searched for the keys that begin with `prefix`; for `found_receipts`.

    Raises:
        RunError: the journal has no record yet.
    """
    tally = Tally(lambda key: key.startswith(prefix))
    read_into(tally, fs, Staging(fs, root, run_id).journal_dir, live=True)
    if tally.info is None:
        raise RunError(f"run {run_id!r} has decided nothing yet")
    tally.kept = {key: files for key, files in tally.kept.items() if key.startswith(prefix)}
    return tally


def found_receipts(tally: Tally) -> list[Receipt]:
    """What a journal says of the keys that were looked for, in order; one that is decided counts as staged."""
    info = tally.info
    assert info is not None
    found = [
        receipt_of(one.proposal, State.STAGED, info.staging)
        if one.uploaded is None
        else receipt_of(one.proposal, State.UPLOADED, info.dest or "", one.uploaded)
        for one in tally.found
    ]
    kept = [kept_receipt(key, files, info) for key, files in tally.kept.items()]
    return sorted([*found, *kept], key=lambda receipt: receipt.key)
