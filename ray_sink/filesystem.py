"""The few file operations that the promises rest on, behind one small Protocol.

Everything durable (staging, journal, ownership in a folder) goes through it, so that the model tests can put a
simulated disk underneath, stop after any single operation and lose what was not synced.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ray_sink.errors import StagingError

Buffer = bytes | bytearray | memoryview

Append = Callable[[Buffer], None]
"""Takes the next bytes of a file; they may change once it has returned."""

_TEMP = re.compile(r"\.(.+)\.[0-9a-f]{12}")


def temp_for(name: str) -> str | None:
    """The name that the file `name` was to get, if it is what a `create_with` or `replace_with` that died has left."""
    match = _TEMP.fullmatch(name)
    return match[1] if match else None


class NewFile(Protocol):
    """A file being written, from `Filesystem.create`."""

    def write(self, data: Buffer) -> None:
        """Append all of `data`."""

    def sync(self) -> None:
        """Return when what was written survives a power cut. After an error, give the file up."""

    def close(self) -> None:
        """Close; errors of delayed writes surface here."""


class Filesystem(Protocol):
    """One mounted filesystem.

    Atomic: `rename` (the target is replaced), `create_with` (content and name appear together, or FileExistsError).
    Durable: contents after `NewFile.sync`; names after `sync_dir` of the folder; folders that `make_dirs` made
    when it returns. Errors are OSError, as the operating system gives them.
    """

    def create(self, path: Path) -> NewFile:
        """Create `path` exclusively and open it for writing."""

    def create_with(self, path: Path, data: bytes) -> None:
        """Create `path` with `data`, durable; FileExistsError if somebody else was first."""

    def replace_with(self, path: Path, data: bytes) -> None:
        """Put `data` under `path`, whatever was there; atomic, not synced."""

    def read(self, path: Path) -> bytes:
        """All bytes of `path`."""

    def size(self, path: Path) -> int | None:
        """Size in bytes of the regular file `path`, or None where there is none."""

    def rename(self, source: Path, target: Path) -> None:
        """Move a file or a folder within this filesystem."""

    def remove(self, path: Path) -> None:
        """Remove a file; nothing happens if it is gone."""

    def remove_dir(self, path: Path) -> None:
        """Remove an empty folder; nothing happens if it is gone."""

    def list(self, path: Path) -> list[str]:
        """Names in the folder `path`, sorted; empty if there is no such folder."""

    def has_dir(self, path: Path) -> bool:
        """Whether there is a folder `path`; fresh also on a mount that caches names."""

    def make_dirs(self, path: Path, *, below: Path) -> None:
        """Make `path` and what is missing of its parents below `below`, durable; symlinks on the way are refused."""

    def sync_dir(self, path: Path) -> None:
        """Return when the names in the folder `path` survive a power cut."""


class _PosixFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:  # a write may be short
            view = view[os.write(self._fd, view) :]

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PosixFilesystem:
    """The operating system's own files. Modes are those that ``open()`` gives: umask and setgid decide."""

    def create(self, path: Path) -> NewFile:
        """See `Filesystem.create`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return _PosixFile(os.open(path, flags, 0o666))

    def create_with(self, path: Path, data: bytes) -> None:
        """See `Filesystem.create_with`: a whole temp file, linked to its name."""
        temp = self._written(path, data, sync=True)
        try:
            try:
                os.link(temp, path)
            except FileExistsError:
                # NFS repeats a request whose reply was lost, and then meets the link it has made
                if not os.path.samestat(temp.lstat(), path.lstat()):
                    raise
            except FileNotFoundError as error:
                # whoever owns the folder by now has swept our temp
                if not os.path.lexists(path):
                    raise
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            except OSError as error:
                # no hard links here (FAT, some FUSE): exclusive create is what is left
                if not _unsupported(error):
                    raise
                self._fill(path, data, sync=True)
        finally:
            self.remove(temp)
        self.sync_dir(path.parent)

    def replace_with(self, path: Path, data: bytes) -> None:
        """See `Filesystem.replace_with`."""
        temp = self._written(path, data, sync=False)
        try:
            os.replace(temp, path)
        except OSError:
            self.remove(temp)
            raise

    def _written(self, path: Path, data: bytes, *, sync: bool) -> Path:
        temp = path.parent / f".{path.name}.{os.urandom(6).hex()}"
        self._fill(temp, data, sync=sync)
        return temp

    def _fill(self, path: Path, data: bytes, *, sync: bool) -> None:
        """Create `path` exclusively with `data`; after an error it is gone again."""
        file = self.create(path)
        try:
            try:
                file.write(data)
                if sync:
                    file.sync()
            finally:
                file.close()
        except OSError:
            self.remove(path)
            raise

    def read(self, path: Path) -> bytes:
        """See `Filesystem.read`."""
        return path.read_bytes()

    def size(self, path: Path) -> int | None:
        """See `Filesystem.size`."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def rename(self, source: Path, target: Path) -> None:
        """See `Filesystem.rename`."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """See `Filesystem.remove`."""
        path.unlink(missing_ok=True)

    def remove_dir(self, path: Path) -> None:
        """See `Filesystem.remove_dir`."""
        try:
            path.rmdir()
        except FileNotFoundError:
            return

    def list(self, path: Path) -> list[str]:
        """See `Filesystem.list`."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has_dir(self, path: Path) -> bool:
        """See `Filesystem.has_dir`: a look may be answered from a cache, an open asks the server."""
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make_dirs(self, path: Path, *, below: Path) -> None:
        """See `Filesystem.make_dirs`."""
        here = below
        for part in path.relative_to(below).parts:
            parent, here = here, here / part
            made = True
            try:
                os.mkdir(here)
            except FileExistsError:
                made = False
                # another writer may have made it and not synced it yet: whoever relies on it syncs
                if not stat.S_ISDIR(here.lstat().st_mode):
                    raise StagingError(
                        f"{here} is in the way: outputs need a folder there, and a symlink or file is found."
                        " Remove it, or use another staging folder"
                    ) from None
            try:
                self.sync_dir(parent)
            except OSError:
                # a second sync that says yes would prove nothing: whoever tries again makes it anew
                if made:
                    with suppress(OSError):
                        os.rmdir(here)
                raise

    def sync_dir(self, path: Path) -> None:
        """See `Filesystem.sync_dir`."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _unsupported(error: OSError) -> bool:
    return error.errno in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


def chunks_of(path: Path, chunk_bytes: int = 4 * 2**20) -> Iterable[memoryview]:
    """The contents of the local file `path`, in views of one reused buffer."""
    buffer = bytearray(chunk_bytes)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield view[:count]
