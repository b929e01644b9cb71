"""Receipts as rows of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from ray_sink.records import Receipt

SCHEMA: Final = pa.schema(
    [
        ("key", pa.string()),
        ("attempt", pa.string()),
        ("state", pa.string()),
        ("verification", pa.string()),
        ("bytes", pa.int64()),
        ("uri", pa.string()),
        ("checksum", pa.string()),
        ("uris", pa.list_(pa.string())),
        ("checksums", pa.list_(pa.string())),
        ("notes", pa.list_(pa.string())),
    ]
)
"""``uri`` and ``checksum`` are those of the first file, ``uris`` and ``checksums`` of all; ``bytes`` is their sum."""

KEPT_PREFIX: Final = "kept_"
"""Goes before the name of a kept column that a receipt's own column has."""


def receipt_table(receipts: Sequence[Receipt], kept: Mapping[str, pa.Array]) -> pa.Table:
    """One row a receipt: the kept columns, then those of `SCHEMA`."""
    rows = [
        {
            "key": receipt.key,
            "attempt": receipt.attempt,
            "state": receipt.state.value,
            "verification": receipt.verification.value if receipt.verification else None,
            "bytes": receipt.bytes,
            "uri": receipt.files[0].uri,
            "checksum": receipt.files[0].checksum,
            "uris": [file.uri for file in receipt.files],
            "checksums": [file.checksum for file in receipt.files],
            "notes": list(receipt.notes),
        }
        for receipt in receipts
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    names: list[str] = []
    columns: list[pa.Array] = []
    for name, column in kept.items():
        if name == "key" and column.to_pylist() == table["key"].to_pylist():
            continue  # the user's key column has our name, and our values
        names.append(f"{KEPT_PREFIX}{name}" if name in SCHEMA.names else name)
        columns.append(column)
    return pa.table([*columns, *table.columns], names=[*names, *SCHEMA.names])
