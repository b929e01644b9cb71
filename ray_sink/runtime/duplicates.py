"""Looking for two rows under one key before anything runs, where that costs little."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.data import Dataset
from ray.data.dataset import MaterializedDataset
from ray.exceptions import RayTaskError

from ray_sink.keys import check_key, hash_keys
from ray_sink.runtime.batches import Batch
from ray_sink.runtime.failing import own_error, unwrapped
from ray_sink.runtime.keying import KeyTemplate, duplicate_error

_CHEAP_READS = ("ReadRange", "ReadParquet", "ReadFilesParquet")
_NAMED = 20


def refuse_duplicates(ds: Dataset, template: KeyTemplate, *, sources: bool = False) -> None:
    """Look at the keys, or at the sources, of a dataset that is in memory, or is read from a store of columns.

    In others, keys that occur twice are found as they come: in a batch, and by the ledger, which knows rows by their
    identity; sources when the dataset has come to its end.

    Raises:
        DuplicateKeyError: keys, or sources, that several rows have.
        InvalidKeyError: a key cannot name an output.
    """
    schema = ds.schema(fetch_if_missing=False)
    if schema is None or template.missing(schema.names) or not _is_cheap(ds):
        return
    fields = ds.select_columns(list(template.fields))
    try:
        halves = [
            np.stack([b["h0"], b["h1"]], axis=1)
            for b in _hashes(fields, template, sources).iter_batches(batch_size=None)
        ]
        found = [pair.view("S16").ravel() for pair in halves]
        hashes = np.sort(np.concatenate(found)) if found else np.empty(0, dtype="S16")
        again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_NAMED]
        if len(again):
            keys = fields.map_batches(_Named(template, again), batch_size=None).take_all()
            raise duplicate_error(
                sorted({row["key"] for row in keys}), "the dataset", source=template if sources else None
            )
    except RayTaskError as error:
        raise own_error(error) from error


def _hashes(fields: Dataset, template: KeyTemplate, sources: bool) -> Dataset:
    def hashed(batch: dict[str, Any]) -> dict[str, Any]:
        with unwrapped():
            found = template.keys_of(Batch(batch))
            hashes = hash_keys(found if sources else [check_key(key) for key in found])
        # as numbers: arrow ends a string of bytes at its first zero
        halves = hashes.view(np.uint64).reshape(-1, 2)
        return {"h0": halves[:, 0], "h1": halves[:, 1]}

    return fields.map_batches(hashed, batch_size=None)


class _Named:
    """The keys behind some hashes."""

    def __init__(self, template: KeyTemplate, wanted: Any) -> None:
        self._template = template
        self._wanted = wanted

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        keys = self._template.keys_of(Batch(batch))
        found = np.isin(hash_keys(keys), self._wanted)
        return {"key": np.asarray(keys, dtype=object)[found]}


def _is_cheap(ds: Dataset) -> bool:
    """In memory, or a read that can leave out all other columns."""
    if isinstance(ds, MaterializedDataset):
        return True
    last = ds._logical_plan.dag
    before = [operator.name for operator in last.input_dependencies]
    return last.name.startswith(_CHEAP_READS) and before in ([], ["ListFiles"])
