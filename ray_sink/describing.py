"""What is in an output: names, shapes, dtypes, and the numbers that tell a good field from a bad one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ray_sink.formats.base import Value


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor of an output.

    Attributes:
        name: its name or index; None where it is the output.
        dtype: its dtype, such as ``"float32"``.
        shape: its shape.
        min: least element that is not NaN; None where there is none, or where elements have no order.
        max: greatest element that is not NaN; likewise.
        mean: mean of the elements that are not NaN; likewise.
        nans: number of elements that are NaN.
    """

    name: str | None
    dtype: str
    shape: tuple[int, ...]
    min: float | None
    max: float | None
    mean: float | None
    nans: int


def summaries(value: Value) -> list[TensorSummary]:
    """A summary of each tensor of `value`, in order; infinities count as elements."""
    return [_summary(name, tensor) for name, tensor in _tensors(value)]


def _tensors(value: Value) -> Iterator[tuple[str | None, Tensor]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, Sequence):
        yield from ((str(index), tensor) for index, tensor in enumerate(value))
    else:
        yield None, value


def _summary(name: str | None, tensor: Tensor) -> TensorSummary:
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if tensor.dtype.is_complex:
        nans = int(tensor.isnan().sum())
        return TensorSummary(name, dtype, shape, None, None, None, nans)
    nans = 0
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4:
        tensor = tensor.float()  # numpy has no bfloat16 and no float8
    array = tensor.numpy()
    if tensor.dtype.is_floating_point:
        array, nans = _without_nans(array)
    if not array.size:
        return TensorSummary(name, dtype, shape, None, None, None, nans)
    return TensorSummary(
        name, dtype, shape, float(array.min()), float(array.max()), float(array.mean(dtype="float64")), nans
    )


def _without_nans(array: np.ndarray) -> tuple[np.ndarray, int]:
    import numpy as np

    # a NaN makes the sum one: most arrays need no mask. So do two infinities, and then the mask finds none
    if not math.isnan(float(array.sum(dtype="float64"))):
        return array, 0
    bad = np.isnan(array)
    return array[~bad], int(bad.sum())
