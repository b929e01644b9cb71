"""Outputs on their way through Ray: contiguous numpy arrays, never pickled tensors.

``ray.put`` copies numpy buffers at memory speed and readers map them without a copy; a torch tensor goes through
pickle. A dtype that numpy lacks travels as its bytes, with dtype and shape beside them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from ray_sink.errors import UnsupportedValueError
from ray_sink.formats.values import flat_bytes, tensors_of

if TYPE_CHECKING:
    from ray_sink.formats.base import Value


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor as plain memory.

    Attributes:
        data: C-contiguous array in the tensor's own dtype, or its bytes as uint8 where numpy lacks the dtype.
        dtype: torch's name of the dtype, such as ``"bfloat16"``.
        shape: the tensor's shape.
    """

    data: np.ndarray
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Values one by one: each a tensor, a list of tensors, or a dict of tensors."""

    values: tuple[PackedTensor | list[PackedTensor] | dict[str, PackedTensor], ...]


@dataclass(frozen=True, slots=True)
class PackedColumns:
    """Columns with a common leading dimension, one row an output; the name None stands for a bare tensor."""

    columns: dict[str | None, PackedTensor]


Packed = PackedRows | PackedColumns

Checked: TypeAlias = "Mapping[str | None, torch.Tensor] | Sequence[Value]"
"""A batch as it may be packed: columns, or values one by one."""

_NUMPY_DTYPES = {
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
}


def as_tensor(value: object, what: str) -> torch.Tensor:
    """A torch view of a tensor or numpy array.

    Raises:
        UnsupportedValueError: it is neither, or holds Python objects.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            try:
                return torch.from_numpy(value)
            except (TypeError, ValueError):
                pass  # negative strides and foreign byte orders have no torch view
            try:
                return torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape))
            except TypeError:
                pass
        raise UnsupportedValueError(f"{what} has dtype {value.dtype}, which is no tensor: convert it to numbers first")
    raise UnsupportedValueError(f"{what} must be a torch.Tensor or a numpy array, got {type(value).__name__}")


def pack_tensor(tensor: torch.Tensor) -> PackedTensor:
    """Bring a tensor to host memory. The result may share the tensor's memory: copy it before the caller goes on."""
    host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    dtype = str(host.dtype).removeprefix("torch.")
    if dtype not in _NUMPY_DTYPES:
        data = flat_bytes(host).numpy()
    else:
        data = host.numpy()
    return PackedTensor(data, dtype, tuple(tensor.shape))


def pack_rows(values: Sequence[Value]) -> PackedRows:
    """Pack values one by one."""
    packed: list[PackedTensor | list[PackedTensor] | dict[str, PackedTensor]] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            packed.append(pack_tensor(value))
        elif isinstance(value, Mapping):
            packed.append({name: pack_tensor(tensor) for name, tensor in value.items()})
        else:
            packed.append([pack_tensor(tensor) for tensor in value])
    return PackedRows(tuple(packed))


def pack_columns(columns: Mapping[str | None, torch.Tensor]) -> PackedColumns:
    """Pack columns whose first dimension runs over the outputs."""
    return PackedColumns({name: pack_tensor(tensor) for name, tensor in columns.items()})


def pack(batch: Checked) -> Packed:
    """Pack columns, or values one by one."""
    return pack_columns(batch) if isinstance(batch, Mapping) else pack_rows(batch)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tensors of a batch belong together, without them.

    Attributes:
        shape: for columns their names; for values one by one a list, where None is a tensor, a number that many in a
            list, and a tuple the names of a mapping.
    """

    shape: tuple[str | None, ...] | list[int | tuple[str, ...] | None]

    def pack(self, tensors: Sequence[torch.Tensor]) -> Packed:
        """Pack other tensors in the place of those that `taken_apart` found. May share their memory."""
        left = iter(tensors)
        if isinstance(self.shape, tuple):
            return pack_columns(dict(zip(self.shape, left, strict=True)))
        values: list[Value] = []
        for shape in self.shape:
            if shape is None:
                values.append(next(left))
            elif isinstance(shape, int):
                values.append([next(left) for _ in range(shape)])
            else:
                values.append({name: next(left) for name in shape})
        return pack_rows(values)


def taken_apart(batch: Checked) -> tuple[Layout, list[torch.Tensor]]:
    """The tensors of a batch, in order, and how to put them together."""
    if isinstance(batch, Mapping):
        return Layout(tuple(batch)), list(batch.values())
    shape: list[int | tuple[str, ...] | None] = []
    for value in batch:
        if isinstance(value, torch.Tensor):
            shape.append(None)
        else:
            shape.append(tuple(value) if isinstance(value, Mapping) else len(value))
    return Layout(shape), [tensor for value in batch for _, tensor in tensors_of(value)]


def packed_bytes(packed: Packed) -> int:
    """Bytes of tensor memory in `packed`."""
    return sum(tensor.data.nbytes for tensor in _tensors(packed))


def copied(packed: Packed) -> Packed:
    """`packed` with memory of its own."""
    return copy.deepcopy(packed)


def _tensors(packed: Packed) -> list[PackedTensor]:
    if isinstance(packed, PackedColumns):
        return list(packed.columns.values())
    found: list[PackedTensor] = []
    for value in packed.values:
        if isinstance(value, PackedTensor):
            found.append(value)
        else:
            found.extend(value.values() if isinstance(value, dict) else value)
    return found


def unpack_tensor(packed: PackedTensor) -> torch.Tensor:
    """The tensor again, without a copy. Its memory may be read-only: nobody writes into it."""
    if packed.data.size == 0:
        return torch.empty(packed.shape, dtype=getattr(torch, packed.dtype))
    flat = torch.frombuffer(packed.data, dtype=getattr(torch, packed.dtype))
    return flat.reshape(packed.shape)


def unpack(packed: Packed) -> list[Value]:
    """The outputs again, in order, as views."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        if isinstance(packed, PackedRows):
            return [_unpack_value(value) for value in packed.values]
        columns = {name: unpack_tensor(tensor) for name, tensor in packed.columns.items()}
    if None in columns:
        return list(columns[None])
    rows = len(next(iter(columns.values())))
    return [{str(name): tensor[row] for name, tensor in columns.items()} for row in range(rows)]


def _unpack_value(value: PackedTensor | list[PackedTensor] | dict[str, PackedTensor]) -> Value:
    if isinstance(value, PackedTensor):
        return unpack_tensor(value)
    if isinstance(value, dict):
        return {name: unpack_tensor(tensor) for name, tensor in value.items()}
    return [unpack_tensor(tensor) for tensor in value]
