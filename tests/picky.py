"""A format that cannot encode some values, which only encoding tells; importable where the writers run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import torch

from ray_sink.formats.npy import NpyFormat


class Picky(NpyFormat):
    """numpy's, but for tensors with a NaN in them."""

    name = "picky"

    def encode(self, value: Any, file: BinaryIO) -> Sequence[str]:
        if isinstance(value, torch.Tensor) and value.isnan().any():
            raise ValueError("there is a NaN in it")
        return super().encode(value, file)
