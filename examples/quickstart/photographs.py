"""The input: overlapping tiles of the photographs that come inside scikit-image's wheel. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

SIZE = 256
"""Height and width of a tile in pixels."""
_STEP = 64
# Others of skimage.data are fetched from the network at first use; these are in the wheel.
_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One row of the input: a square of a photograph, by its upper left corner."""

    photo: str
    y: int
    x: int

    @property
    def key(self) -> str:
        """Names its output for ever; the same as `KEY` makes of the row."""
        return KEY.format(**asdict(self))


KEY = "{photo}/{y:04d}-{x:04d}"


def tiles(count: int) -> list[Tile]:
    """The first `count` tiles, taken from all photographs in turn.

    Raises:
        ValueError: there are fewer.
    """
    rounds = zip_longest(*(_grid(photo) for photo in _PHOTOGRAPHS))
    found = [tile for tile in chain.from_iterable(rounds) if tile is not None]
    if not 2 <= count <= len(found):
        raise ValueError(f"there are tiles for 2 to {len(found)}, not for {count}")
    return found[:count]


def read(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the tile's pixels, y, x, colour; uint8."""
    y, x = row["y"], row["x"]
    return {**row, "pixels": _photograph(row["photo"])[y : y + SIZE, x : x + SIZE]}


def _grid(photo: str) -> list[Tile]:
    height, width, _ = _photograph(photo).shape
    return [Tile(photo, y, x) for y in range(0, height - SIZE + 1, _STEP) for x in range(0, width - SIZE + 1, _STEP)]


@cache
def _photograph(name: str) -> npt.NDArray[np.uint8]:
    from skimage import data

    image = np.asarray(getattr(data, name)())
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
