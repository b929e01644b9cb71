"""A folder as destination, published the way staged files are: whole, durable, then named."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ray_sink.checksum import checksum_of
from ray_sink.errors import (
    DestinationError,
    ObjectExistsError,
    ObjectMissingError,
    SinkError,
    StagingError,
    StoreError,
    StoreUnavailableError,
)
from ray_sink.filesystem import Filesystem, PosixFilesystem, chunks_of, temp_for
from ray_sink.keys import RESERVED
from ray_sink.probes import TRIES, is_probe, probe_name
from ray_sink.records import FileRecord, MultipartUpload, Verification
from ray_sink.stores.base import Capabilities, ObjectInfo
from ray_sink.stores.staged import staged_chunks

_CHUNK_BYTES = 4 * 2**20
_TEMPS = f"{RESERVED}/tmp"
_LATER = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})


class FolderStore:
    """See `ray_sink.stores.base.Store`.

    A folder holds no metadata: `head` tells the size, `read_checksum` the rest. A put computes the checksum of what
    it copies before the file gets its name, which counts as verified. `put_bytes` is create-only by the filesystem;
    `put_file` looks first, and puts of this process never race each other.

    Args:
        url: the destination as the user gave it.
        root: the folder; made with its parents when it is missing.
        filesystem: the operations underneath.

    Attributes:
        root: the folder.
    """

    def __init__(self, url: str, root: Path, filesystem: Filesystem | None = None) -> None:
        self.url = url
        self.root = root
        self._filesystem = filesystem or PosixFilesystem()
        self._naming = threading.Lock()
        self._probing = threading.Lock()
        self._found: Capabilities | None = None

    def __repr__(self) -> str:
        """Name the destination only."""
        return f"{type(self).__name__}({self.url!r})"

    def probe(self) -> Capabilities:
        """See `Store.probe`."""
        with self._probing:
            if self._found is None:
                self._found = self._look()
        return self._found

    def _look(self) -> Capabilities:
        name = f"{RESERVED}/{probe_name()}"
        try:
            self.put_bytes(name, b"first", replace=False)
            create_only = any(self._refuses(name) for _ in range(TRIES))
            self.put_bytes(name, b"third", replace=True)
            if self.get_bytes(name) != b"third":
                raise DestinationError(f"{self.url}: what was put under {name} is not what is there afterwards")
            self.delete(name)
        except StoreError as error:
            raise DestinationError(
                f"{error}. The destination must be a folder that the uploader may write: check that it is mounted"
                " there, its rights, and its free space"
            ) from error
        return Capabilities(
            create_only=create_only, verification=Verification.VERIFIED, metadata=False, multipart=False
        )

    def _refuses(self, name: str) -> bool:
        try:
            self.put_bytes(name, b"second", replace=False)
        except ObjectExistsError:
            return True
        return False

    def held_bytes(self, file: FileRecord) -> int:
        """See `Store.held_bytes`."""
        return min(file.bytes, 2 * _CHUNK_BYTES)

    def put_file(
        self,
        local: Path,
        file: FileRecord,
        *,
        metadata: Mapping[str, str],
        replace: bool,
        on_multipart: Callable[[MultipartUpload], None],
    ) -> Verification:
        """See `Store.put_file`."""
        chunks = staged_chunks(local, file, _CHUNK_BYTES)
        first = next(chunks, b"")  # a missing `local` shows here, apart from what the destination may lack
        self._publish(file.path, itertools.chain([first], chunks), replace=replace)
        return Verification.VERIFIED

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        """See `Store.put_bytes`."""
        if replace:
            self._publish(path, [data], replace=True)
            return
        with self._errors("put", path):
            target = self._place_for(path)
            self._filesystem.create_with(target, data)

    def _publish(self, path: str, chunks: Iterable[bytes], *, replace: bool) -> None:
        with self._errors("put", path):
            target = self._place_for(path)
            self._refuse_existing(path, target, replace=replace)  # before a large copy; it counts below
            temp = self._place_for(f"{_TEMPS}/{os.urandom(8).hex()}")
            try:
                file = self._filesystem.create(temp)
                try:
                    for chunk in chunks:
                        file.write(chunk)
                    file.sync()
                finally:
                    file.close()
                with self._naming:
                    self._refuse_existing(path, target, replace=replace)
                    self._filesystem.rename(temp, target)
            except BaseException as error:
                try:
                    self._filesystem.remove(temp)
                except OSError as second:
                    error.add_note(f"and its temp file {temp} could not be removed: {second}")
                raise
            self._filesystem.sync_dir(target.parent)

    def _refuse_existing(self, path: str, target: Path, *, replace: bool) -> None:
        if not replace and os.path.lexists(target):
            raise ObjectExistsError(f"put {self.url}/{path}: there is a file under that name", path=path)

    def _place_for(self, path: str) -> Path:
        """The full path, its folders made and durable."""
        target = self._full(path)
        base = self.root
        while not base.exists():
            base = base.parent
        try:
            self._filesystem.make_dirs(target.parent, below=base)
        except StagingError as error:
            raise DestinationError(f"{self.url}: {error}", path=path) from error
        return target

    def _full(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise StoreError(f"{path!r} is no path inside {self.url}", path=path)
        return self.root.joinpath(*parts)

    def _existing(self, path: str) -> Path:
        """The full path of a regular file that is reached through no symlink."""
        full = self._full(path)
        if self._filesystem.size(full) is None or _has_link(full.parent, self.root):
            raise ObjectMissingError(f"{self.url}/{path}: there is no such file", path=path)
        return full

    def get_bytes(self, path: str) -> bytes:
        """See `Store.get_bytes`."""
        with self._errors("get", path):
            return self._filesystem.read(self._existing(path))

    def read_checksum(self, path: str) -> str:
        """See `Store.read_checksum`."""
        with self._errors("get", path):
            return checksum_of(chunks_of(self._existing(path), _CHUNK_BYTES))

    def head(self, path: str) -> ObjectInfo | None:
        """See `Store.head`."""
        with self._errors("head", path):
            try:
                size = self._filesystem.size(self._existing(path))
            except ObjectMissingError:
                return None
        return None if size is None else ObjectInfo(path, size, {})

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.list`; symlinks are not followed, temps not shown."""
        folder = prefix.rpartition("/")[0]
        with self._errors("list", None):
            start = self._full(folder) if folder else self.root
            if _has_link(start, self.root):
                return
            for info in self._walk(start, f"{folder}/" if folder else ""):
                if info.path.startswith(prefix):
                    yield info

    def _walk(self, folder: Path, below: str) -> Iterator[ObjectInfo]:
        for name in self._filesystem.list(folder):
            path, full = below + name, folder / name
            size = self._filesystem.size(full)
            if size is not None:
                if not _is_temp(path):
                    yield ObjectInfo(path, size, {})
            elif path != _TEMPS and not full.is_symlink():
                yield from self._walk(full, f"{path}/")

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        with self._errors("delete", path):
            try:
                full = self._existing(path)
            except ObjectMissingError:
                return
            self._filesystem.remove(full)
            self._filesystem.sync_dir(full.parent)

    def abort(self, upload: MultipartUpload) -> None:
        """See `Store.abort`."""
        raise StoreError(f"{self.url} has no multipart uploads to abort", path=upload.path)

    def sweep(self) -> None:
        """See `Store.sweep`."""
        with self._errors("sweep", None):
            temps = self.root / _TEMPS
            for name in self._filesystem.list(temps):
                self._filesystem.remove(temps / name)
            for folder in self._filesystem.list(self.root / RESERVED):
                if is_probe(folder):
                    continue
                for name in self._filesystem.list(self.root / RESERVED / folder):
                    if temp_for(name) is not None:
                        self._filesystem.remove(self.root / RESERVED / folder / name)
        self.sweep_probes()

    def sweep_probes(self) -> None:
        """See `Store.sweep_probes`."""
        with self._errors("sweep", None):
            for name in filter(is_probe, self._filesystem.list(self.root / RESERVED)):
                self._filesystem.remove(self.root / RESERVED / name)

    def close(self) -> None:
        """See `Store.close`: nothing is held open."""

    @contextmanager
    def _errors(self, doing: str, path: str | None) -> Iterator[None]:
        """Turn what the operating system says into our errors."""
        where = f"{doing} {self.url}{'' if path is None else '/' + path}"
        try:
            yield
        except SinkError:
            raise
        except FileExistsError as error:
            raise ObjectExistsError(f"{where}: there is a file under that name", path=path) from error
        except FileNotFoundError as error:
            if doing == "put":  # a folder or temp was taken away under it
                raise StoreUnavailableError(f"{where}: {error}", path=path) from error
            raise ObjectMissingError(f"{where}: {error}", path=path) from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise DestinationError(f"{where}: {error}. Check the folder's rights", path=path) from error
            if error.errno in _LATER:
                raise StoreUnavailableError(f"{where}: {error}", path=path) from error
            raise StoreError(f"{where}: {error}", path=path) from error


def _is_temp(path: str) -> bool:
    """Whether `path` is what `Filesystem.create_with` leaves when it dies: only our own folder has those."""
    folder, _, name = path.rpartition("/")
    return folder.split("/")[0] == RESERVED and name.startswith(".")


def _has_link(folder: Path, root: Path) -> bool:
    """Whether a symlink lies between `root` and `folder`."""
    while folder != root:
        if folder.is_symlink():
            return True
        folder = folder.parent
    return False
