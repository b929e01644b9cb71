"""Which columns of a model's output are saved, and which stay with the receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ray_sink.errors import ConfigError
from ray_sink.runtime.batches import Batch, Column, describe, is_array, is_ragged, is_tensor, same_memory

Columns = str | Sequence[str] | None


def check_columns(columns: object) -> str | tuple[str, ...] | None:
    """Check what the user gave as ``columns``.

    Raises:
        ConfigError: it is no column name, list of column names, or None.
    """
    if columns is None or (isinstance(columns, str) and columns):
        return columns
    if isinstance(columns, Sequence) and columns and all(isinstance(name, str) and name for name in columns):
        if len(set(columns)) < len(columns):
            raise ConfigError(f"columns={list(columns)!r} names a column twice")
        return tuple(columns)
    raise ConfigError(
        "columns must be the name of a column (saved as a tensor), a list of names (saved as a mapping) or None (the"
        f" tensor columns that the model adds or replaces), got {columns!r:.80}"
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """What is saved of one output batch.

    Attributes:
        names: the columns.
        value: as `SinkHandle.write_batch` takes it: an array with rows first, a mapping of such arrays, or a value for
            each row where shapes differ.
    """

    names: tuple[str, ...]
    value: Any


def select(columns: str | tuple[str, ...] | None, output: Batch, before: Mapping[str, Column]) -> Selection:
    """What is to be saved.

    With None it is the tensor columns that the model added or replaced: one is saved as a tensor, several as a mapping.
    A column is a tensor column when each row holds at least one dimension. An array that the model changed in place is
    taken for its input: name it.

    Args:
        columns: the user's choice.
        output: what the model returned, or a dataset holds.
        before: the input's columns, as they were before the call.

    Raises:
        ConfigError: a column is missing, or holds nothing that can be saved.
    """
    if columns is None:
        made = tuple(name for name in output.names if _made(name, output, before))
        if not made:
            raise ConfigError(
                "the model added or replaced no tensor column, so that there is nothing to save. Name what is to be"
                f" saved: columns='…'. The model returned {output.describe()}"
            )
        columns = made[0] if len(made) == 1 else made
    names = (columns,) if isinstance(columns, str) else columns
    for name in names:
        if name not in output:
            raise ConfigError(f"columns names {name!r}, and there is {output.describe()}")
        column = output.column(name)
        if output.rows and not is_array(column) and not is_ragged(column):
            raise ConfigError(f"column {name!r} holds {_odd(column)}, which is no tensor")
    if all(is_array(output.column(name)) for name in names):
        arrays = {name: output.column(name) for name in names}
        return Selection(names, arrays[columns] if isinstance(columns, str) else arrays)
    rows = {name: [_tensor(value, name, row) for row, value in enumerate(output.column(name))] for name in names}
    if isinstance(columns, str):
        return Selection(names, rows[columns])
    return Selection(names, [dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True)])


def _made(name: str, output: Batch, before: Mapping[str, Column]) -> bool:
    column = output.column(name)
    return is_tensor(column) and not (name in before and same_memory(column, before[name]))


def _odd(column: Column) -> str:
    """What a column holds that is no tensor."""
    if not isinstance(column, np.ndarray) or column.dtype == object:
        for row, value in enumerate(column):
            if not is_ragged([value]):
                return f"a {type(value).__name__} in row {row}"
    return describe(column)


def _tensor(value: Any, name: str, row: int) -> Any:
    try:
        return _dense(value)
    except ValueError as error:
        raise ConfigError(
            f"column {name!r} holds lists of different lengths within row {row}, which are no tensor: {error}"
        ) from None


def _dense(value: Any) -> Any:
    """A row's tensor; arrow gives lists of lists as arrays of arrays."""
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
        return value
    if isinstance(value, np.ndarray):
        return np.stack([_dense(item) for item in value]) if len(value) else np.empty(0)
    return np.asarray(value)


def kept_columns(output: Batch, saved: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of numbers, strings and times of an output, one value a row: what stays with the receipts.

    Nothing big is kept: no tensors, no bytes, no objects.
    """
    kept: dict[str, pa.Array] = {}
    for name in output.names:
        array = None if name in saved else _plain_column(output, name)
        if array is not None:
            kept[name] = array
    return kept


def _plain_column(output: Batch, name: str) -> pa.Array | None:
    arrow = output.arrow(name)
    return plain_array(output.column(name)) if arrow is None else arrow if _is_plain(arrow.type) else None


def _is_plain(kind: pa.DataType) -> bool:
    numbers = pa.types.is_primitive(kind) or pa.types.is_decimal(kind)
    return bool(numbers or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def plain_array(column: Column) -> pa.Array | None:
    """A column of plain values in arrow, or None if it is something else."""
    if isinstance(column, torch.Tensor):
        if column.ndim != 1 or column.dtype in (torch.bfloat16,) or column.is_complex():
            return None
        column = column.detach().cpu().numpy()
    if isinstance(column, np.ndarray) and column.dtype != object:
        # arrow would share the memory, and the model may use it again
        return pa.array(column.copy()) if column.ndim == 1 and column.dtype.kind in "biufUMm" else None
    values = list(column)
    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string())
    return None
