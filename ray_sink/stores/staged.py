"""Reading a staged file on its way to a store, held against its record."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ray_sink.checksum import Checksum
from ray_sink.errors import StagedFileChangedError, StagingError
from ray_sink.records import FileRecord

_STEP_BYTES: Final = 2**20  # still in the cache when its checksum is taken


def staged_chunks(local: Path, file: FileRecord, chunk_bytes: int) -> Generator[bytes, None, None]:
    """The contents of `local`, each chunk a buffer of its own.

    The file is opened once: what is checked is what is read. Nothing may be published before the last chunk was
    taken, because the comparison with `file` comes at the end.

    Raises:
        FileNotFoundError: there is no `local`.
        StagedFileChangedError: size or checksum are not those of `file`.
        StagingError: it cannot be read.
    """
    running = Checksum()
    size = 0
    with _opened(local) as fd:
        while chunk := os.read(fd, chunk_bytes):
            size += len(chunk)
            if size > file.bytes:
                break
            running.update(chunk)
            yield chunk
    _check(local, file, size, running)


def read_staged(local: Path, file: FileRecord, target: memoryview) -> None:
    """Fill `target`, which is ``file.bytes`` long, with the whole of `local`; raises as `staged_chunks` does."""
    running = Checksum()
    size = 0
    with _opened(local) as fd:
        while size < file.bytes or not size:
            step = target[size : size + _STEP_BYTES]
            # one byte more than expected shows a file that grew, without reading all that was added
            more = [bytearray(1)] if size + len(step) == file.bytes else []
            if not (count := os.readv(fd, [step, *more])):
                break
            running.update(step[:count])
            size += count
    _check(local, file, size, running)


@contextmanager
def _opened(local: Path) -> Iterator[int]:
    try:
        fd = os.open(local, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StagingError(f"staged file {local} cannot be read: {error}") from error


def _check(local: Path, file: FileRecord, size: int, running: Checksum) -> None:
    if size != file.bytes:
        raise StagedFileChangedError(
            f"staged file {local} has {'more than ' if size > file.bytes else ''}{size} bytes, its receipt says"
            f" {file.bytes}: something changed it after it was staged; it was not uploaded"
        )
    if running.text != file.checksum:
        raise StagedFileChangedError(
            f"staged file {local} has checksum {running.text}, its receipt says {file.checksum}: something changed"
            " it after it was staged; it was not uploaded"
        )
