"""Reading a staged file on its way to a store, held against its record."""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

from ray_sink.checksum import Checksum
from ray_sink.errors import StagedFileChangedError, StagingError
from ray_sink.filesystem import Buffer
from ray_sink.records import FileRecord

_ALLOCATED_BYTES: Final = 2**20


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
    try:
        fd = os.open(local, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb", buffering=0) as stream:
            while chunk := stream.read(chunk_bytes):
                size += len(chunk)
                if size > file.bytes:
                    break
                running.update(chunk)
                yield chunk
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StagingError(f"staged file {local} cannot be read: {error}") from error
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


def read_staged(local: Path, file: FileRecord) -> Buffer:
    """The whole of `local` in one buffer, already held against `file`; raises as `staged_chunks` does.

    A large one is memory of its own, which goes back to the system with it: the allocator would keep, for each thread,
    as much as the largest files took, above any budget.
    """
    if file.bytes <= _ALLOCATED_BYTES:
        return b"".join(staged_chunks(local, file, file.bytes + 1))
    whole = memoryview(mmap.mmap(-1, file.bytes))
    at = 0
    for chunk in staged_chunks(local, file, _ALLOCATED_BYTES):
        whole[at : at + len(chunk)] = chunk
        at += len(chunk)
    return whole
