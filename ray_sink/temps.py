"""Local temps: what is encoded on the writer's own disk, or in memory, before it is copied to the shared filesystem."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from ray_sink.budget import ByteBudget
from ray_sink.errors import ConfigError, StagingError
from ray_sink.filesystem import Buffer
from ray_sink.patience import Patience

_CHUNK_BYTES = 4 * 2**20
_IN_MEMORY_BYTES = 2**20


class LocalTemps:
    """Files without a name, which go with their process however that ends; small ones are kept in memory.

    Args:
        folder: where; made if it is missing. None: the system's.
        limit_bytes: most bytes at a time, in memory and on disk; a larger file goes alone.
        patience: waits for a disk that is full.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit_bytes: int, patience: Patience) -> None:
        self._folder = Path(folder) if folder is not None else Path(tempfile.gettempdir())
        self._budget = ByteBudget(limit_bytes)
        self._patience = patience
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder for local temps, {self._folder}, cannot be made: {error}") from error

    def is_beside(self, folder: Path) -> bool:
        """Whether `folder` is on the same filesystem."""
        try:
            return self._folder.stat().st_dev == folder.stat().st_dev
        except OSError:
            return False

    @contextmanager
    def encoded(self, bound_bytes: int, encode: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
        """A file into which `encode` has written; it is gone after the block.

        Args:
            bound_bytes: about as much as will be written, at most.
            encode: writes the whole file; it is called again with another one after an error of the disk.

        Raises:
            StagingError: the disk is full or broken.
        """
        with self._budget.take(bound_bytes):
            file = self._patience.again(lambda _: self._file(bound_bytes, encode))
            try:
                yield file
            finally:
                _close(file)

    def _file(self, bound_bytes: int, encode: Callable[[BinaryIO], None]) -> BinaryIO:
        try:
            file = io.BytesIO() if bound_bytes <= _IN_MEMORY_BYTES else self._on_disk()
        except OSError as error:
            raise StagingError(f"could not make a temp in {self._folder}: {error}") from error
        try:
            encode(file)
            file.seek(0)
        except OSError as error:
            _close(file)
            raise StagingError(f"could not write a temp in {self._folder}: {error}") from error
        except BaseException:
            _close(file)
            raise
        return file

    def _on_disk(self) -> BinaryIO:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder))


def _close(file: BinaryIO) -> None:
    # what it could not write does not matter any more
    with suppress(OSError):
        file.close()


def chunks_of_temp(file: BinaryIO) -> Iterator[Buffer]:
    """All of `file`, from its start; a large one in views of one reused buffer."""
    if isinstance(file, io.BytesIO):
        yield file.getvalue()  # no copy: the buffer itself, which a view would keep from being closed
        return
    file.seek(0)
    view = memoryview(bytearray(_CHUNK_BYTES))
    while count := file.readinto(view):  # type: ignore[attr-defined]  # typing.BinaryIO leaves it out
        yield view[:count]
