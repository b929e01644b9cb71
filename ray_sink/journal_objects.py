"""A run's journal at its destination, for runs whose nodes share no filesystem. Each sync makes an object.

Below ``_ray_sink/<run>/journal/``: ``<term>/<first byte>-<end>``, each put once, create-only. After 64 of them one
object with all their bytes is put, and they are deleted. Where something dies in between, both are there: a reader
takes at each byte the longest object that begins there, and goes on at its end.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from ray_sink.errors import JournalCorruptError, ObjectExistsError, ObjectMissingError, SinkError
from ray_sink.filesystem import Buffer, Filesystem, NewFile, PosixFilesystem
from ray_sink.keys import RESERVED
from ray_sink.records import FileRecord, Proposal
from ray_sink.staging import Staging
from ray_sink.stores.base import SmallObjects
from ray_sink.terms import Terms

_PIECE: Final = re.compile(r"(\d{15})-(\d{15})")
_TOGETHER: Final = 64
_AT_ONCE: Final = 8
_LOOKS: Final = 10


class JournalStaging(Staging):
    """All that a ledger sees of its run's staging where each node has its own: the journal, at the destination.

    Args:
        fs: of the run's `JournalObjects`.
        run_id: the run.
    """

    def __init__(self, fs: Filesystem, run_id: str) -> None:
        super().__init__(fs, Path("/"), run_id)
        self.terms = _TermsByJournal(self)

    def publish(self, proposals: Sequence[Proposal]) -> list[str]:
        """Nothing: writers have no decision without an upload."""
        return []

    def roll_forward(self, term: str, proposals: Iterable[Proposal]) -> list[str]:
        """Nothing, as `publish`."""
        return []

    def free(self, files: Iterable[FileRecord]) -> None:
        """Nothing: writers remove their files themselves."""

    def sweep(self, term: str, *, finished: bool = False) -> None:
        """Nothing: each node's writers clear up there."""


class _TermsByJournal(Terms):
    """Lives without temps. Who stages for an older one is told by the ledger, and cannot take a name that is taken."""

    def __init__(self, staging: Staging) -> None:
        super().__init__(staging.fs, staging.root, staging.run_dir)
        self._journals = staging.journal_dir

    def is_fenced(self, term: str) -> bool:
        return max(self._fs.list(self._journals), default=term) > term

    def begin(self, term: str) -> None:
        """Nothing to take."""


class JournalObjects(PosixFilesystem):
    """A `Filesystem` for one folder of files that are only appended to and read: a journal's.

    Args:
        store: where they are.
        run_id: the run.
    """

    def __init__(self, store: SmallObjects, run_id: str) -> None:
        self._store = store
        self._prefix = f"{RESERVED}/{run_id}/journal"

    def create(self, path: Path) -> NewFile:
        """See `Filesystem.create`."""
        if path.name in self.list(path.parent):
            raise FileExistsError(errno.EEXIST, "there is a journal of this name", str(path))
        return _Appended(self._store, f"{self._prefix}/{path.name}")

    def read(self, path: Path) -> bytes:
        """See `Filesystem.read`.

        Raises:
            JournalCorruptError: a piece is gone.
        """
        prefix = f"{self._prefix}/{path.name}/"
        for _ in range(_LOOKS):
            pieces = _chosen(path.name, (info.path.removeprefix(prefix) for info in self._store.list(prefix)))
            if not pieces:
                raise FileNotFoundError(errno.ENOENT, "there is no such journal", str(path))
            with suppress(ObjectMissingError), ThreadPoolExecutor(_AT_ONCE) as pool:
                # a writer that lives may have put them together since
                return b"".join(pool.map(lambda name: self._store.get_bytes(prefix + name), pieces))
        raise JournalCorruptError(f"journal {path.name} has a piece that is listed and cannot be read: {prefix}")

    def list(self, path: Path) -> list[str]:
        """See `Filesystem.list`."""
        prefix = f"{self._prefix}/"
        found = (info.path.removeprefix(prefix).partition("/") for info in self._store.list(prefix))
        # what has no pieces is a staging folder's journal, where that is looked at as a store
        return sorted({name for name, _, piece in found if piece})

    def make_dirs(self, path: Path, *, below: Path) -> None:
        """A store has no folders."""

    def sync_dir(self, path: Path) -> None:
        """A put that has returned is durable."""


def _chosen(journal: str, names: Iterable[str]) -> list[str]:
    """The pieces that make up a journal, in order."""
    ends: dict[int, int] = {}
    for name in names:
        if (found := _PIECE.fullmatch(name)) is not None:
            first, end = int(found[1]), int(found[2])
            ends[first] = max(end, ends.get(first, 0))
    chosen: list[str] = []
    at = 0
    while at in ends:
        chosen.append(_piece(at, ends[at]))
        at = ends[at]
    if any(first > at for first in ends):
        raise JournalCorruptError(
            f"journal {journal} has no piece that begins at byte {at}, and others behind it: restore what was deleted"
            " at the destination, or start a new run under another run_id; nothing was dropped"
        )
    return chosen


def _piece(first: int, end: int) -> str:
    return f"{first:015d}-{end:015d}"


class _Appended:
    """One journal being written."""

    def __init__(self, store: SmallObjects, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._at = 0
        self._unsynced = bytearray()
        self._since = bytearray()
        self._small: list[str] = []
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ray_sink-journal")

    def write(self, data: Buffer) -> None:
        self._unsynced += memoryview(data).cast("B")

    def sync(self) -> None:
        """Put what was written since the last one.

        Raises:
            OSError: whether it is there, only a reader can tell.
        """
        if not self._unsynced:
            return
        data = bytes(self._unsynced)
        name = _piece(self._at, self._at + len(data))
        try:
            self._put(name, data)
        except SinkError as error:
            raise OSError(errno.EIO, f"journal at {self._store.url}: {error}") from error
        self._unsynced.clear()
        self._at += len(data)
        self._since += data
        self._small.append(name)
        if len(self._small) >= _TOGETHER:
            with suppress(SinkError):  # the pieces are there
                self._put_together()

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self._prefix}/{name}"
        try:
            self._store.put_bytes(path, data, replace=False)
        except ObjectExistsError:
            # ours, and the reply was lost; or two lives have one name
            if self._store.get_bytes(path) != data:
                raise

    def _put_together(self) -> None:
        if len(self._small) > 1:
            self._put(_piece(self._at - len(self._since), self._at), bytes(self._since))
            for name in self._small:
                self._pool.submit(self._delete, name)
        self._small.clear()
        self._since.clear()

    def _delete(self, name: str) -> None:
        with suppress(SinkError):  # readers take the longer one; some may put and not delete
            self._store.delete(f"{self._prefix}/{name}")

    def close(self) -> None:
        with suppress(SinkError):
            self._put_together()
        self._pool.shutdown()
