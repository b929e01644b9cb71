"""Tensors as numpy arrays, for the formats of numpy.

The layout is that of numpy's documentation, version 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import torch
from numpy.lib import format as npy

from ray_sink.errors import UnsupportedValueError
from ray_sink.formats import values

if TYPE_CHECKING:
    from torch import Tensor

    from ray_sink.formats.base import Value

DTYPES: Final = frozenset(
    {
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    }
)
ADVICE: Final = "convert it, or use SaveFormat.SAFETENSORS or SaveFormat.PYTORCH_PT"
NOTE: Final = "bfloat16 stored as float32"


def check(value: Value, what: str) -> None:
    """Refuse dtypes that numpy lacks; bfloat16 is held by float32."""
    values.check_value(value)
    values.check_dtypes(value, DTYPES, what, ADVICE)


def notes_of(value: Value) -> list[str]:
    """What differs from the value in the file."""
    return [
        NOTE if name is None else f"{name}: {NOTE}"
        for name, tensor in values.tensors_of(value)
        if tensor.dtype == torch.bfloat16
    ]


def write(tensor: Tensor, file: BinaryIO) -> None:
    """Write the header and the elements, without a copy of the whole."""
    held = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
    dtype = torch.empty(0, dtype=held).numpy().dtype
    npy.write_array_header_1_0(
        file,
        {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(tensor.shape)},
    )
    if tensor.dtype == torch.bfloat16:
        flat = tensor.reshape(-1)
        for start in range(0, len(flat), values.STEP_BYTES // 4):
            file.write(values.raw_bytes(flat[start : start + values.STEP_BYTES // 4].float()))
        return
    values.write_elements(tensor, file)


def to_tensor(array: np.ndarray[Any, np.dtype[Any]], name: str) -> Tensor:
    """An array that was read, as a tensor; another machine's byte order is turned round.

    Raises:
        UnsupportedValueError: torch has no such dtype.
    """
    try:
        return torch.from_numpy(
            np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(array.shape)
        )
    except TypeError as error:
        raise UnsupportedValueError(
            f"array {name!r} is {array.dtype}, which no tensor holds; use numpy.load"
        ) from error
