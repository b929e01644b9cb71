"""A filesystem that tells which of its operations has not come back, and for how long."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_sink.filesystem import Buffer, Filesystem, NewFile


class WatchedFilesystem:
    """A `Filesystem` for one thread at a time, of which any other may ask what that thread waits for.

    Args:
        fs: does the work.
        clock: monotonic, seconds.
    """

    def __init__(self, fs: Filesystem, clock: Callable[[], float] = time.monotonic) -> None:
        self._fs = fs
        self._clock = clock
        self._lock = threading.Lock()
        self._doing = ""
        self._since_s = 0.0

    @contextmanager
    def held(self) -> Iterator[str]:
        """What is under way, or ``""``; until the block ends it does not return, and its thread changes nothing."""
        with self._lock:
            yield self._doing

    @property
    def silent_s(self) -> float:
        """How long the present operation has been under way, seconds; 0 when there is none."""
        with self._lock:
            return self._clock() - self._since_s if self._doing else 0.0

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """The block is one operation."""
        with self._lock:
            self._doing, self._since_s = doing, self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._doing = ""

    def create(self, path: Path) -> NewFile:
        """See `Filesystem.create`."""
        with self.during(f"creating {path}"):
            return _WatchedFile(self._fs.create(path), self, path)

    def create_with(self, path: Path, data: bytes) -> None:
        """See `Filesystem.create_with`."""
        with self.during(f"creating {path}"):
            self._fs.create_with(path, data)

    def replace_with(self, path: Path, data: bytes) -> None:
        """See `Filesystem.replace_with`."""
        with self.during(f"replacing {path}"):
            self._fs.replace_with(path, data)

    def read(self, path: Path) -> bytes:
        """See `Filesystem.read`."""
        with self.during(f"reading {path}"):
            return self._fs.read(path)

    def size(self, path: Path) -> int | None:
        """See `Filesystem.size`."""
        with self.during(f"looking at {path}"):
            return self._fs.size(path)

    def rename(self, source: Path, target: Path) -> None:
        """See `Filesystem.rename`."""
        with self.during(f"renaming {source}"):
            self._fs.rename(source, target)

    def remove(self, path: Path) -> None:
        """See `Filesystem.remove`."""
        with self.during(f"removing {path}"):
            self._fs.remove(path)

    def remove_dir(self, path: Path) -> None:
        """See `Filesystem.remove_dir`."""
        with self.during(f"removing {path}"):
            self._fs.remove_dir(path)

    def list(self, path: Path) -> builtins.list[str]:
        """See `Filesystem.list`."""
        with self.during(f"listing {path}"):
            return self._fs.list(path)

    def has_dir(self, path: Path) -> bool:
        """See `Filesystem.has_dir`."""
        with self.during(f"looking at {path}"):
            return self._fs.has_dir(path)

    def make_dirs(self, path: Path, *, below: Path) -> None:
        """See `Filesystem.make_dirs`."""
        with self.during(f"making {path}"):
            self._fs.make_dirs(path, below=below)

    def sync_dir(self, path: Path) -> None:
        """See `Filesystem.sync_dir`."""
        with self.during(f"syncing {path}"):
            self._fs.sync_dir(path)


class _WatchedFile:
    def __init__(self, file: NewFile, fs: WatchedFilesystem, path: Path) -> None:
        self._file = file
        self._fs = fs
        self._path = path

    def write(self, data: Buffer) -> None:
        with self._fs.during(f"writing {self._path}"):
            self._file.write(data)

    def sync(self) -> None:
        with self._fs.during(f"syncing {self._path}"):
            self._file.sync()

    def close(self) -> None:
        with self._fs.during(f"closing {self._path}"):
            self._file.close()
