"""A format of a user's own, importable where the writers run."""

from __future__ import annotations

import numpy as np
import torch

from ray_sink.errors import UnsupportedValueError


class Shouting:
    """A user's own format."""

    name = "shouting"
    suffix = ".shout"

    def check(self, value: object) -> None:
        if not isinstance(value, torch.Tensor):
            raise UnsupportedValueError("only tensors shout")

    def encode(self, value: torch.Tensor, file: object) -> list[str]:
        file.write(b"!" + value.numpy().tobytes())  # type: ignore[attr-defined]
        return ["loud"]

    def decode(self, file: object) -> torch.Tensor:
        data = file.read()  # type: ignore[attr-defined]
        return torch.from_numpy(np.frombuffer(data[1:], dtype=np.float32).copy())
