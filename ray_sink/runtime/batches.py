"""A batch as Ray Data hands it to a model and as a model may return it: one way to look at all of its shapes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from ray.data.block import BlockAccessor

from ray_sink.errors import ConfigError, InvalidKeyError

if TYPE_CHECKING:
    import torch

Column: TypeAlias = "npt.NDArray[Any] | torch.Tensor | Sequence[Any]"
"""One value a row: an array or tensor with rows first, or a sequence of values of different shapes."""


def is_torch(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a torch tensor; where torch is not loaded, in tasks in front of the model, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Batch:
    """Columns by name, whatever holds them: a dict of arrays, tensors or lists, a pandas.DataFrame, a pyarrow.Table.

    A bare array or tensor is one column named ``"data"``, as in Ray Data.

    Attributes:
        rows: number of rows.
    """

    def __init__(self, raw: object) -> None:
        if isinstance(raw, np.ndarray) or is_torch(raw):
            raw = {"data": raw}
        if not isinstance(raw, Mapping | pd.DataFrame | pa.Table):
            raise ConfigError(
                f"the model returned a {type(raw).__name__}: return a dict of arrays or tensors by column name, a"
                " pandas.DataFrame or a pyarrow.Table"
            )
        self._raw: Any = raw
        self._read: dict[str, Column] = {}
        self.rows = self._count()

    def _count(self) -> int:
        if not isinstance(self._raw, Mapping):
            return len(self._raw)
        rows = {name: _length(name, column) for name, column in self._raw.items()}
        if len(set(rows.values())) > 1:
            raise ConfigError(f"the model's columns differ in their number of rows: {rows}")
        return next(iter(rows.values()), 0)

    @property
    def names(self) -> list[str]:
        """Column names."""
        if isinstance(self._raw, pa.Table):
            return list(self._raw.column_names)
        return [str(name) for name in self._raw]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def column(self, name: str) -> Column:
        """A column, without a copy where its holder allows."""
        if name not in self._read:
            if isinstance(self._raw, Mapping):
                self._read[name] = _plain(self._raw[name])
            else:
                self._read[name] = _read_column(self._raw, name)
        return self._read[name]

    def arrow(self, name: str) -> pa.ChunkedArray | None:
        """The column as it is in a pyarrow.Table, if this is one."""
        return self._raw.column(name) if isinstance(self._raw, pa.Table) else None

    def describe(self) -> str:
        """Columns with what they hold, for messages."""
        return ", ".join(f"{name!r} ({describe(self.column(name))})" for name in self.names) or "no columns at all"


def _length(name: str, column: Any) -> int:
    try:
        return len(column)
    except TypeError:
        raise ConfigError(f"column {name!r} holds a single {type(column).__name__}: it needs one value a row") from None


def _plain(column: Any) -> Column:
    if isinstance(column, np.ndarray) or is_torch(column):
        return column
    if isinstance(column, pd.Series | pa.Array | pa.ChunkedArray):
        table = pa.table({"column": column}) if not isinstance(column, pd.Series) else column.to_frame("column")
        return _read_column(table, "column")
    values = list(column)
    if values and all(isinstance(value, bool | int | float | str | np.generic) for value in values):
        return np.asarray(values)
    return values


def _read_column(block: pa.Table | pd.DataFrame, name: str) -> npt.NDArray[Any]:
    read = BlockAccessor.for_block(block).to_numpy(name)
    assert isinstance(read, np.ndarray)  # a dict for a list of names
    return read


def is_array(column: Column) -> bool:
    """One array or tensor, rows first, of numbers."""
    return is_torch(column) or (isinstance(column, np.ndarray) and column.dtype.kind in "biufcV")


def is_ragged(column: Column) -> bool:
    """A sequence of arrays or tensors, possibly of different shapes."""
    if is_torch(column) or (isinstance(column, np.ndarray) and column.dtype != object):
        return False
    return len(column) > 0 and all(isinstance(value, np.ndarray | list) or is_torch(value) for value in column)


def is_tensor(column: Column) -> bool:
    """Each row holds a tensor of at least one dimension."""
    if is_array(column):
        return not isinstance(column, Sequence) and column.ndim > 1
    return is_ragged(column)


def same_memory(one: Column, other: Column) -> bool:
    """Both are views of the same values: a model passed its input on."""
    if one is other:
        return True
    if is_torch(one) and is_torch(other):
        return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.dtype == other.dtype
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.dtype == object:
            return all(a is b for a, b in zip(one, other, strict=True))
        return bool(one.__array_interface__["data"] == other.__array_interface__["data"])
    return False


def describe(column: Column) -> str:
    """Dtype and shape of a row, for messages."""
    if is_array(column) and not isinstance(column, Sequence):
        shape = "x".join(map(str, column.shape[1:]))
        return f"{str(column.dtype).removeprefix('torch.')}{f', {shape} a row' if shape else ''}"
    return f"{type(column[0]).__name__} objects" if len(column) else "empty"


def scalars(name: str, column: Column) -> list[Any]:
    """Plain Python values of a column that has one scalar a row.

    Raises:
        ConfigError: a row holds more than a scalar.
        InvalidKeyError: a row holds nothing.
    """
    if isinstance(column, np.ndarray) or is_torch(column):
        if column.ndim != 1:
            raise ConfigError(f"key column {name!r} holds {describe(column)}: a key needs one plain value a row")
        values = column.tolist()
    else:
        values = list(column)
    for row, value in enumerate(values):
        if value is None or value != value:
            raise InvalidKeyError(f"key column {name!r} is null in row {row} of a batch: every output needs a name")
        if isinstance(value, list | np.ndarray | Mapping) or is_torch(value):
            raise ConfigError(f"key column {name!r} holds a {type(value).__name__}: a key needs one plain value a row")
    return values
