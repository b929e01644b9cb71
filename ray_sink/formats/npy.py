"""``.npy``: one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ray_sink.errors import UnsupportedValueError
from ray_sink.formats import arrays, values

if TYPE_CHECKING:
    from ray_sink.formats.base import Value


class NpyFormat:
    """One tensor a file; a mapping or sequence needs `DictMode.SPLIT`. ``numpy.load(allow_pickle=False)`` reads it."""

    name = "numpy_npy"
    suffix = ".npy"
    appends = True

    def check(self, value: Value) -> None:
        """See `ray_sink.formats.base.Format.check`."""
        values.check_value(value)
        if isinstance(value, Mapping | Sequence):
            raise UnsupportedValueError(
                f"a .npy file holds one tensor, got a {type(value).__name__} of {len(value)}:"
                " use DictMode.SPLIT or SaveFormat.NUMPY_NPZ"
            )
        arrays.check(value, "a .npy file")

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        """See `ray_sink.formats.base.Format.encode`."""
        for _, tensor in values.tensors_of(value):
            arrays.write(tensor, file)
        return arrays.notes_of(value)

    def decode(self, file: BinaryIO) -> Value:
        """See `ray_sink.formats.base.Format.decode`."""
        return arrays.to_tensor(np.load(file, allow_pickle=False), "")
