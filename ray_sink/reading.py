"""The reader's side: a sealed run's manifest, and outputs back as tensors."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ray_sink.checksum import checksum_of
from ray_sink.config import DictMode, SaveFormat, UploadOptions
from ray_sink.errors import ConfigError, RunError, StoreError
from ray_sink.formats import by_suffix, resolve
from ray_sink.keys import RESERVED
from ray_sink.manifest import PARTIAL, SUCCESS, Seal, read_partial_seal, read_seal, receipt_from
from ray_sink.records import FileRecord, Receipt, State
from ray_sink.stores import open_store

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from ray_sink.formats.base import Format, Value
    from ray_sink.stores.base import Store


class Manifest:
    """The sealed set of receipts of a run; read-only.

    Attributes:
        seal: what ``_SUCCESS`` (or ``_PARTIAL``) says: counts, bytes, conflicts, rows.
        table: one row a key, as in `ray_sink.manifest.schema`, ordered by key.
    """

    def __init__(self, seal: Seal, table: pa.Table, upload: UploadOptions) -> None:
        self.seal = seal
        self.table = table
        self._upload = upload

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __repr__(self) -> str:
        run = self.seal.run
        return f"<Manifest of run {run.run_id!r} at {run.dest or run.staging}: {len(self)} outputs>"

    @property
    def failures(self) -> Mapping[str, str]:
        """Reason by key, for outputs that the run went on without (`Limits.max_failures`)."""
        return self.seal.failures

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key.as_py(): row for row, key in enumerate(self.table.column("key"))}

    def keys(self) -> Iterator[str]:
        """All keys, in order."""
        for batch in self.table.column("key").chunks:
            yield from batch.to_pylist()

    def receipts(self) -> Iterator[Receipt]:
        """All receipts, by key."""
        for batch in self.table.to_batches():
            yield from map(receipt_from, batch.to_pylist())

    def receipt(self, key: str) -> Receipt:
        """The receipt of one key.

        Raises:
            KeyError: the run has no such key.
        """
        if key not in self._rows:
            raise KeyError(f"run {self.seal.run.run_id!r} has no output {key!r}")
        return receipt_from(self.table.slice(self._rows[key], 1).to_pylist()[0])

    def load(self, key: str, *, save_format: SaveFormat | Format | None = None) -> Value:
        """Read one output back and check its bytes against its receipt.

        Args:
            key: the output's key.
            save_format: the format, where it was the user's own.

        Returns:
            The value as it was handed in, on the CPU; with ``DictMode.SPLIT`` always a mapping by name.

        Raises:
            KeyError: the run has no such key.
            StoreError: it is not there, or not what its receipt says.
        """
        run = self.seal.run
        split = DictMode(run.dict_mode) is DictMode.SPLIT
        return load_receipt(self.receipt(key), self._store, save_format, split=split)

    @cached_property
    def _store(self) -> Store:
        return open_store(self.seal.run.dest or self.seal.run.staging, self._upload)

    def to_dataset(self) -> ray.data.Dataset:
        """The receipts as a Ray dataset, one row a key, for the next job to read. Starts Ray if need be."""
        from ray_sink.runtime.data import manifest_dataset

        dataset: ray.data.Dataset = manifest_dataset(self.table)
        return dataset


def open(  # noqa: A001 - ray_sink.open reads best
    dest: str,
    run_id: str | None = None,
    *,
    partial: bool = False,
    storage_options: Mapping[str, object] | None = None,
    credentials: str | None = None,
) -> Manifest:
    """Open a sealed run.

    Args:
        dest: the destination, or the staging folder where that was the destination.
        run_id: which run, if there are several.
        partial: take a run, too, that went on without some outputs; its manifest's `failures` names them.
        storage_options: as in `UploadOptions`.
        credentials: as in `UploadOptions`; called in this process.

    Raises:
        RunError: there is no sealed run, or more than one and `run_id` is None.
    """
    upload = UploadOptions(storage_options=dict(storage_options or {}), credentials=credentials)
    store = open_store(dest, upload)
    if run_id is None:
        run_id = _only_run(store, dest, (SUCCESS, PARTIAL) if partial else (SUCCESS,))
    seal = read_seal(store, run_id)
    if seal is None:
        rest = read_partial_seal(store, run_id)
        if rest is not None and partial:
            return Manifest(rest, read_table(store, rest), upload)
        if rest is not None:
            raise RunError(
                f"run {run_id!r} at {dest} is partial: {len(rest.failures)} output(s) failed. Run the same script again"
                " to try them again, or read the others with ray_sink.open(…, partial=True)"
            )
        raise RunError(
            f"run {run_id!r} at {dest} is not sealed: it is still under way, or ended early. Run the same script again"
            " to finish it"
        )
    return Manifest(seal, read_table(store, seal), upload)


def _only_run(store: Store, dest: str, names: Collection[str]) -> str:
    found = sorted(
        {
            PurePosixPath(info.path).parent.name
            for info in store.list(f"{RESERVED}/")
            if PurePosixPath(info.path).name in names
        }
    )
    if len(found) != 1:
        what = f"{len(found)} sealed runs ({', '.join(found[:10])}): name one with run_id" if found else "no sealed run"
        raise RunError(f"{dest} holds {what}")
    return found[0]


def read_table(store: Store, seal: Seal) -> pa.Table:
    """All rows of a sealed manifest.

    Raises:
        RunError: a manifest file is not what ``_SUCCESS`` says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in seal.manifest:
        data = store.get_bytes(file.path)
        if len(data) != file.bytes:
            raise RunError(f"{file.path} has {len(data)} bytes; _SUCCESS says {file.bytes}")
        tables.append(pq.read_table(pa.BufferReader(data)))
    return pa.concat_tables(tables)


def load(
    source: str | Receipt,
    *,
    save_format: SaveFormat | Format | None = None,
    storage_options: Mapping[str, object] | None = None,
    credentials: str | None = None,
) -> Value:
    """Read one output back, on the CPU, without executing pickles.

    Args:
        source: a path, a URI, or a receipt; a receipt's bytes are checked against its checksum.
        save_format: the format, where it was the user's own; None: by suffix.
        storage_options: as in `UploadOptions`.
        credentials: as in `UploadOptions`; called in this process.

    Returns:
        A tensor, a dict or a list; for a receipt of several files (``DictMode.SPLIT``) a dict by name.

    Raises:
        StoreError: it is not there, or not what its receipt says.
        ConfigError: no built-in format has that suffix.
    """
    upload = UploadOptions(storage_options=dict(storage_options or {}), credentials=credentials)
    if isinstance(source, Receipt):
        first = source.files[0]
        if first.uri is None or not first.uri.endswith(first.path):
            raise ConfigError(f"the receipt of {source.key!r} does not say where its files are")
        store = open_store(first.uri.removesuffix(first.path).rstrip("/"), upload)
        return load_receipt(source, store, save_format, split=len(source.files) > 1)
    folder, _, name = str(source).rpartition("/")
    if not folder and not str(source).startswith("/"):
        folder = "."
    store = open_store(folder or "/", upload)
    return _decode(store.get_bytes(name), name, save_format)


def load_receipt(receipt: Receipt, store: Store, save_format: SaveFormat | Format | None, *, split: bool) -> Value:
    """The value of a receipt whose files are in `store`, checked against it.

    Raises:
        StoreError: a file is not there, or not what the receipt says.
        ConfigError: no built-in format has that suffix, and `save_format` names none.
    """
    values = {}
    for file in receipt.files:
        data = store.get_bytes(file.path)
        if receipt.state is not State.KEPT:
            _check(data, file)
        values[_split_name(receipt.key, file.path)] = _decode(data, file.path, save_format)
    if split:
        return values  # type: ignore[return-value]  # each file of a SPLIT output holds one tensor
    return next(iter(values.values()))


def _check(data: bytes, file: FileRecord) -> None:
    if len(data) != file.bytes or checksum_of([data]) != file.checksum:
        raise StoreError(f"{file.uri or file.path} is not what its receipt says: it was changed later", path=file.path)


def _split_name(key: str, path: str) -> str:
    return path[len(key) + 1 :].rpartition(".")[0] if path.startswith(f"{key}_") else path


def _decode(data: bytes, path: str, save_format: SaveFormat | Format | None) -> Value:
    format_ = by_suffix(path) if save_format is None else resolve(save_format)
    return format_.decode(io.BytesIO(data))
