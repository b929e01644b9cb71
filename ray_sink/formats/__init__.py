"""Formats by name and by suffix. Nothing heavy is imported until a format is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from types import MappingProxyType
from typing import Final

from ray_sink.config import SaveFormat
from ray_sink.errors import ConfigError
from ray_sink.formats.base import Format

__all__ = ["FORMATS", "Format", "by_suffix", "resolve"]


def _pytorch() -> Format:
    from ray_sink.formats.pytorch import PytorchFormat

    return PytorchFormat()


def _npz() -> Format:
    from ray_sink.formats.npz import NpzFormat

    return NpzFormat()


def _npy() -> Format:
    from ray_sink.formats.npy import NpyFormat

    return NpyFormat()


def _safetensors() -> Format:
    from ray_sink.formats.safetensors import SafetensorsFormat

    return SafetensorsFormat()


FORMATS: Final[Mapping[SaveFormat, Callable[[], Format]]] = MappingProxyType(
    {
        SaveFormat.PYTORCH_PT: _pytorch,
        SaveFormat.NUMPY_NPZ: _npz,
        SaveFormat.NUMPY_NPY: _npy,
        SaveFormat.SAFETENSORS: _safetensors,
    }
)


def resolve(save_format: SaveFormat | Format) -> Format:
    """The format that `save_format` names, or `save_format` itself if it is anyone's own `Format`.

    Raises:
        ConfigError: it is neither, or its ``name`` or ``suffix`` cannot be used.
    """
    choices = ", ".join(f"SaveFormat.{member.name}" for member in SaveFormat)
    if isinstance(save_format, str):
        try:
            return FORMATS[SaveFormat(save_format)]()
        except ValueError:
            raise ConfigError(f"save_format {save_format!r} is unknown; choose one of {choices}") from None
    # a class has the attributes of a Format too, and is not one
    if isinstance(save_format, type) or not isinstance(save_format, Format):
        raise ConfigError(
            f"save_format must be one of {choices}, or an object with name, suffix, check, encode and decode;"
            f" got {save_format!r:.120}"
        )
    name: object = save_format.name
    suffix: object = save_format.suffix
    if not isinstance(name, str) or not name:
        raise ConfigError(f"the name of a format must be a str that is not empty, got {name!r}")
    if not isinstance(suffix, str) or len(suffix) < 2 or suffix[0] != "." or suffix != suffix.strip() or "/" in suffix:
        raise ConfigError(f"the suffix of a format must look like '.pt', got {suffix!r}")
    return save_format


def by_suffix(path: str | PathLike[str]) -> Format:
    """The built-in format of files that end like `path`.

    Raises:
        ConfigError: no built-in format has that suffix.
    """
    name = fspath(path)
    formats = [factory() for factory in FORMATS.values()]
    for candidate in formats:
        if name.endswith(candidate.suffix):
            return candidate
    known = ", ".join(candidate.suffix for candidate in formats)
    raise ConfigError(f"no built-in format writes files like {name!r} (known: {known}); say which format it is")
