"""Whether a bucket holds what it should: every output computed anew and compared, every other object counted."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data
import torch
from direct import open_place
from features import Features
from photographs import Tile

_OWN = "_ray_sink/"
"""What the sink keeps beside the outputs: its manifest."""


@dataclass(slots=True)
class Verdict:
    """What was found below one place.

    Attributes:
        same: outputs that are there, byte for byte.
        lost: keys whose output is not there.
        different: keys whose output is torn, or holds something else.
        doubled: objects, or rows of the manifest, that there should not be.
    """

    same: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.different or self.doubled)


class Comparison:
    """Computes tiles anew and compares what is stored for them, with no help from ray_sink."""

    def __init__(self, places: Sequence[str]) -> None:
        self.model = Features()
        self.places = [open_place(place) for place in places]

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        expected = self.model.compute(batch["pixels"]).cpu()
        corners = zip(batch["photo"], batch["y"], batch["x"], strict=True)
        keys = [Tile(str(photo), int(y), int(x)).key for photo, y, x in corners]
        found = {
            f"place_{number}": np.array([self._look(place, *output) for output in zip(keys, expected, strict=True)])
            for number, place in enumerate(self.places)
        }
        return {"key": np.array(keys), **found}

    @staticmethod
    def _look(place: tuple[Any, str], key: str, expected: torch.Tensor) -> str:
        files, root = place
        try:
            data = files.cat_file(f"{root}/{key}.pt")
        except FileNotFoundError:
            return "lost"
        try:
            value = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # noqa: BLE001 - there are many ways in which a torn file cannot be read
            return "different"
        same = isinstance(value, torch.Tensor) and (value.dtype, value.shape) == (expected.dtype, expected.shape)
        return "same" if same and torch.equal(value.view(torch.uint8), expected.view(torch.uint8)) else "different"


def verdict(compared: Sequence[dict[str, Any]], number: int, place: str, listed: Sequence[str] = ()) -> Verdict:
    """Sum up one place.

    Args:
        compared: the rows that `Comparison` returned.
        number: the place's number there.
        place: its URL.
        listed: keys as the place's manifest has them, if it has one.
    """
    found = Verdict()
    for row in compared:
        outcome = row[f"place_{number}"]
        if outcome == "same":
            found.same += 1
        else:
            (found.lost if outcome == "lost" else found.different).append(row["key"])
    files, root = open_place(place)
    names = [name.removeprefix(f"{root}/") for name in files.find(root)]
    expected = {f"{row['key']}.pt" for row in compared}
    found.doubled += [name for name in names if name not in expected and not name.startswith(_OWN)]
    found.doubled += [key for key, count in Counter(listed).items() if count > 1]
    return found


def compare(tiles: ray.data.Dataset, places: Sequence[str], **arguments: Any) -> ray.data.Dataset:
    """The dataset of comparisons, one row a tile."""
    return tiles.map_batches(Comparison, fn_constructor_args=(list(places),), **arguments)
