"""Everything else that fsspec knows, by its `put_file`; what it can prove is the size."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray_sink.checksum import checksum_of
from ray_sink.errors import (
    DestinationError,
    DestinationUnavailableError,
    ObjectExistsError,
    ObjectMissingError,
    SinkError,
    StoreError,
    StoreUnavailableError,
)
from ray_sink.keys import RESERVED
from ray_sink.probes import TRIES, is_probe, probe_name
from ray_sink.records import FileRecord, MultipartUpload, Verification
from ray_sink.stores.base import Capabilities, ObjectInfo
from ray_sink.stores.replies import scrub
from ray_sink.stores.staged import staged_chunks

_READ_BYTES = 4 * 2**20
_HELD_BYTES = 64 * 2**20
# These have folders and a rename of their own, and show a file while it grows.
RENAMING = frozenset({"sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs", "ftp"})


class FsspecStore:
    """See `ray_sink.stores.base.Store`.

    Args:
        url: the destination as the user gave it.
        filesystem: an fsspec filesystem.
        root: the destination's path inside it.
        renames: files appear while they grow, so they are put under a temp name and renamed.
    """

    def __init__(self, url: str, filesystem: Any, root: str, *, renames: bool) -> None:
        self.url = url
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._renames = renames
        # object stores of fsspec offer a conditional put under this name
        put = getattr(filesystem, "_put_file", filesystem.put_file)
        self._conditional = not renames and "mode" in inspect.signature(put).parameters
        self._found: Capabilities | None = None
        self._probing = threading.Lock()

    def __repr__(self) -> str:
        """Name the destination only."""
        return f"{type(self).__name__}({self.url!r})"

    def probe(self) -> Capabilities:
        """See `Store.probe`."""
        with self._probing:
            if self._found is None:
                try:
                    self._found = self._look()
                except (StoreUnavailableError, ObjectMissingError) as error:
                    away = isinstance(error, StoreUnavailableError)
                    raise (DestinationUnavailableError if away else DestinationError)(
                        f"{error}. The destination cannot be reached or written from where the uploader runs: check it,"
                        " its storage_options, and the network"
                    ) from error
        return self._found

    def _look(self) -> Capabilities:
        name = f"{RESERVED}/{probe_name()}"
        try:
            self.put_bytes(name, b"first", replace=True)
            honoured = False
            for _ in range(TRIES if self._conditional else 0):
                try:
                    self._pipe(name, b"second", create_only=True)
                except ObjectExistsError:
                    honoured = True
                    break
            if self.get_bytes(name) != (b"first" if honoured or not self._conditional else b"second"):
                raise DestinationError(f"{self.url}: what was put under {name} is not what is there afterwards")
            self._conditional = honoured
            return Capabilities(
                create_only=honoured, verification=Verification.SIZE_CHECKED, metadata=False, multipart=False
            )
        finally:
            self.delete(name)

    def held_bytes(self, file: FileRecord) -> int:
        """See `Store.held_bytes`."""
        return min(file.bytes, _HELD_BYTES)

    def put_file(
        self,
        local: Path,
        file: FileRecord,
        *,
        metadata: Mapping[str, str],
        replace: bool,
        on_multipart: Callable[[MultipartUpload], None],
    ) -> Verification:
        """See `Store.put_file`; these filesystems hold no metadata that is the same for all."""
        self.probe()
        for _ in staged_chunks(local, file, _READ_BYTES):
            pass
        self._put(file.path, lambda target, **mode: self._filesystem.put_file(str(local), target, **mode), replace)
        found = self.head(file.path)
        if found is None or found.bytes != file.bytes:
            seen = "nothing" if found is None else f"{found.bytes} bytes"
            raise StoreUnavailableError(
                f"put {self.url}/{file.path}: there is {seen} afterwards instead of {file.bytes} bytes",
                path=file.path,
            )
        return Verification.SIZE_CHECKED

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        """See `Store.put_bytes`."""
        self._put(path, lambda target, **mode: self._filesystem.pipe_file(target, data, **mode), replace)

    def _pipe(self, path: str, data: bytes, *, create_only: bool) -> None:
        with self._errors("put", path):
            self._filesystem.pipe_file(self._full(path), data, **({"mode": "create"} if create_only else {}))

    def _put(self, path: str, put: Callable[..., None], replace: bool) -> None:
        target = self._full(path)
        mode = {"mode": "create"} if self._conditional and not replace else {}
        if not replace and not mode and self.head(path) is not None:
            raise ObjectExistsError(f"put {self.url}/{path}: there is an object under that name", path=path)
        with self._errors("put", path):
            if not self._renames:
                put(target, **mode)
                return
            temp = self._full(f"{RESERVED}/tmp/{os.urandom(8).hex()}")
            for folder in (temp, target):
                self._filesystem.makedirs(folder.rpartition("/")[0], exist_ok=True)
            try:
                put(temp)
                if replace:
                    with suppress(FileNotFoundError):  # most renames of fsspec refuse an existing name
                        self._filesystem.rm_file(target)
                self._filesystem.mv(temp, target)
            except BaseException:
                with suppress(FileNotFoundError):
                    self._filesystem.rm_file(temp)
                raise

    def get_bytes(self, path: str) -> bytes:
        """See `Store.get_bytes`."""
        with self._errors("get", path):
            return bytes(self._filesystem.cat_file(self._full(path)))

    def read_checksum(self, path: str) -> str:
        """See `Store.read_checksum`."""
        with self._errors("get", path), self._filesystem.open(self._full(path), "rb") as stream:
            return checksum_of(iter(lambda: stream.read(_READ_BYTES), b""))

    def head(self, path: str) -> ObjectInfo | None:
        """See `Store.head`."""
        try:
            with self._errors("head", path):
                found = self._filesystem.info(self._full(path))
        except ObjectMissingError:
            return None
        return ObjectInfo(path, found["size"], {}) if found["type"] == "file" else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        folder = prefix.rpartition("/")[0]
        with self._errors("list", None):
            try:
                found = self._filesystem.find(self._full(folder) if folder else self._root, detail=True)
            except FileNotFoundError:
                return
        # fsspec may add its own root to names, or take it away
        cut = len(self._filesystem._strip_protocol(self._root).rstrip("/")) + 1
        for name, info in found.items():
            path = name[cut:]
            if path.startswith(prefix) and not path.startswith(f"{RESERVED}/tmp/") and info["type"] == "file":
                yield ObjectInfo(path, info["size"], {})

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        try:
            with self._errors("delete", path):
                self._filesystem.rm_file(self._full(path))
        except ObjectMissingError:
            return

    def abort(self, upload: MultipartUpload) -> None:
        """See `Store.abort`."""
        raise StoreError(f"{self.url} has no multipart uploads to abort", path=upload.path)

    def sweep(self) -> None:
        """See `Store.sweep`."""
        self.sweep_probes()
        with self._errors("sweep", None), suppress(FileNotFoundError):
            for name in self._filesystem.find(self._full(f"{RESERVED}/tmp")):
                self._filesystem.rm_file(name)

    def sweep_probes(self) -> None:
        """See `Store.sweep_probes`."""
        with self._errors("sweep", None), suppress(FileNotFoundError):
            for name in self._filesystem.ls(self._full(RESERVED), detail=False):
                if is_probe(name.rpartition("/")[2]):
                    self._filesystem.rm_file(name)

    def close(self) -> None:
        """See `Store.close`; fsspec closes its connections when the filesystem goes."""

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _errors(self, doing: str, path: str | None) -> Iterator[None]:
        """Turn what any filesystem may raise into our errors; its own words may hold secrets, so they are scrubbed."""
        where = f"{doing} {self.url}{'' if path is None else '/' + path}"
        try:
            yield
        except SinkError:
            raise
        except FileExistsError:
            raise ObjectExistsError(f"{where}: there is an object under that name", path=path) from None
        except FileNotFoundError:
            raise ObjectMissingError(f"{where}: there is no such object, or no such place for it", path=path) from None
        except PermissionError as error:
            raise DestinationError(f"{where}: {_words(error)}. Check credentials and rights", path=path) from None
        except TimeoutError as error:
            raise StoreUnavailableError(f"{where}: {_words(error)}", path=path, slow_down=True) from None
        except OSError as error:
            raise StoreUnavailableError(f"{where}: {_words(error)}", path=path) from None
        except Exception as error:  # noqa: BLE001 every filesystem brings errors of its own
            raise StoreError(f"{where}: {_words(error)}", path=path) from None


def _words(error: BaseException) -> str:
    return scrub(f"{type(error).__name__}: {error}")[:300]
