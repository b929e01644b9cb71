"""What a run's outputs are: the same for everyone who has the same few numbers, so that a checker knows every byte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_sink.config import DictMode, SaveFormat
from ray_sink.formats import resolve
from ray_sink.writer import pieces_of

if TYPE_CHECKING:
    from ray_sink.formats.base import Value

FORMAT = resolve(SaveFormat.NUMPY_NPY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The outputs of a run.

    Attributes:
        outputs: how many.
        seed: other seeds have other bytes under the same keys.
        split: each output is two files.
        elements: 8 bytes each, in every file.
    """

    outputs: int
    seed: int = 0
    split: bool = False
    elements: int = 256

    @property
    def dict_mode(self) -> DictMode:
        return DictMode.SPLIT if self.split else DictMode.SINGLE

    def key(self, number: int) -> str:
        return f"runs/part_{number % 3}/sample_{number:04d}"

    def keys(self) -> list[str]:
        return [self.key(number) for number in range(self.outputs)]

    def value(self, number: int) -> Value:
        import torch

        def tensor(name: int) -> torch.Tensor:
            numbers = np.random.default_rng([self.seed, number, name]).standard_normal(self.elements)
            return torch.from_numpy(numbers)

        return {"u": tensor(0), "v": tensor(1)} if self.split else tensor(0)

    def files_of(self, number: int) -> Iterator[tuple[str, bytes]]:
        """Path and contents of each file of an output."""
        for piece in pieces_of(self.key(number), self.value(number), FORMAT, self.dict_mode):
            file = io.BytesIO()
            FORMAT.encode(piece.value, file)
            yield piece.path, file.getvalue()

    def contents(self) -> dict[str, bytes]:
        """Path and contents of every file of the run."""
        return {path: data for number in range(self.outputs) for path, data in self.files_of(number)}
