"""From a local file back to tensors."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from ray_sink.config import SaveFormat
from ray_sink.formats import Format, by_suffix, resolve

if TYPE_CHECKING:
    from ray_sink.formats.base import Value


def load(path: str | PathLike[str], *, save_format: SaveFormat | Format | None = None) -> Value:
    """Read one file back, on the CPU, without executing pickles.

    Args:
        path: a local file.
        save_format: the format that wrote it; None: the built-in one of its suffix.

    Returns:
        The value in the shape that it was written in: a tensor, a dict or a list.

    Raises:
        ConfigError: no built-in format has that suffix, or `save_format` is none.
        OSError: the file cannot be read.
    """
    file_format = by_suffix(path) if save_format is None else resolve(save_format)
    with open(path, "rb") as file:
        return file_format.decode(file)
