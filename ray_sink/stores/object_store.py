"""A bucket as a `Store`: what single requests add up to, whatever the client library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ray_sink.checksum import checksum_of
from ray_sink.errors import DestinationError, ObjectExistsError, ObjectMissingError, StoreError, StoreUnavailableError
from ray_sink.filesystem import Buffer
from ray_sink.keys import RESERVED
from ray_sink.probes import PROBE
from ray_sink.records import FileRecord, MultipartUpload, Verification
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.stores import buffers
from ray_sink.stores.base import Capabilities, ObjectInfo
from ray_sink.stores.metadata import encoded
from ray_sink.stores.multipart import MultipartPut
from ray_sink.stores.objects import Objects
from ray_sink.stores.staged import read_staged, staged_chunks

_STREAM_CHUNK_BYTES = 8 * 2**20
_STREAM_HELD_BYTES = 64 * 2**20
# claims, beats and seals: some 5 s of pauses, well within the time after which an owner may be taken over
_PATIENCE = RetryPolicy(attempts=6, total_s=15)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe learned: the capabilities, and how puts must be made to get them.

    Attributes:
        capabilities: what the store keeps its word on.
        send_checksum: the server takes the checksum's header (it may still ignore it).
        multipart_create_only: it refuses an existing name when a multipart upload is completed.
        multipart_verified: it checks the whole object's checksum then.
    """

    capabilities: Capabilities
    send_checksum: bool
    multipart_create_only: bool = False
    multipart_verified: bool = False


class _Route(Enum):
    SINGLE = auto()
    PARTS = auto()
    STREAM = auto()


class ObjectStore:
    """See `ray_sink.stores.base.Store`."""

    def __init__(
        self,
        url: str,
        objects: Objects,
        *,
        multipart: MultipartPut | None,
        multipart_above_bytes: int,
        prober: Callable[[], Findings],
        retry: Retry | None = None,
        buffer_bytes: int,
    ) -> None:
        self.url = url
        self._objects = objects
        self._multipart = multipart
        self._multipart_above_bytes = multipart_above_bytes
        self._prober = prober
        self._retry = retry or Retry(_PATIENCE)
        self._buffers = buffers.Buffers(buffer_bytes)
        self._findings: Findings | None = None
        self._probing = threading.Lock()

    def __repr__(self) -> str:
        """Name the destination only."""
        return f"{type(self).__name__}({self.url!r})"

    def probe(self) -> Capabilities:
        """See `Store.probe`."""
        return self._found().capabilities

    def _found(self) -> Findings:
        if self._findings is None:
            with self._probing:
                if self._findings is None:
                    self._findings = self._prober()
        return self._findings

    def held_bytes(self, file: FileRecord) -> int:
        """See `Store.held_bytes`."""
        route = self._route(file)
        if route is _Route.PARTS and self._multipart is not None:
            return self._multipart.held_bytes(file.bytes)
        return _STREAM_HELD_BYTES if route is _Route.STREAM else buffers.held_bytes(file.bytes)

    def _route(self, file: FileRecord) -> _Route:
        if file.bytes <= self._multipart_above_bytes:
            return _Route.SINGLE
        if self._multipart is None:
            return _Route.STREAM
        # an S3 without multipart gets the file in one piece, as long as it takes it
        return _Route.PARTS if self._found().capabilities.multipart else _Route.SINGLE

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
        found = self._found()
        able = found.capabilities
        headers = encoded(metadata) if able.metadata else {}
        checksum = file.checksum if found.send_checksum else None
        verification = able.verification
        route = self._route(file)
        if route is _Route.SINGLE:
            with self._buffer(file.bytes) as (data, view):
                read_staged(local, file, view)
                create_only = self._create_only(file.path, replace=replace, honoured=able.create_only)
                self._objects.put(file.path, data, metadata=headers, create_only=create_only, checksum=checksum)
        elif route is _Route.PARTS and self._multipart is not None:
            create_only = self._create_only(file.path, replace=replace, honoured=found.multipart_create_only)
            self._multipart.put(
                local,
                file,
                metadata=headers,
                create_only=create_only,
                checksum=checksum is not None,
                on_multipart=on_multipart,
            )
            if not found.multipart_verified:
                verification = Verification.SIZE_CHECKED
        else:
            self._create_only(file.path, replace=replace, honoured=False)
            self._objects.put_stream(file.path, staged_chunks(local, file, _STREAM_CHUNK_BYTES), metadata=headers)
        if verification is not Verification.VERIFIED:
            self._check_size(file)
        return verification

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        """See `Store.put_bytes`."""

        def put(number: int) -> None:
            found = self._found()
            checksum = checksum_of([data]) if found.send_checksum else None
            create_only = self._create_only(path, replace=replace, honoured=found.capabilities.create_only)
            self._objects.put(path, data, metadata={}, create_only=create_only, checksum=checksum)

        self._retry.call(put)

    def get_bytes(self, path: str) -> bytes:
        """See `Store.get_bytes`."""
        return self._retry.call(lambda _: b"".join(self._objects.get(path)))

    def read_checksum(self, path: str) -> str:
        """See `Store.read_checksum`."""
        return checksum_of(self._objects.get(path))

    def head(self, path: str) -> ObjectInfo | None:
        """See `Store.head`."""
        try:
            return self._objects.head(path)
        except DestinationError:
            # the answer to a HEAD has no body that could say why: a GET's has
            with suppress(ObjectMissingError):
                next(iter(self._objects.get(path)), None)
            return self._objects.head(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        # whole, because it begins again when a page fails
        return iter(self._retry.call(lambda _: list(self._objects.list(prefix))))

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        self._retry.call(lambda _: self._objects.delete(path))

    def abort(self, upload: MultipartUpload) -> None:
        """See `Store.abort`."""
        if self._multipart is None:
            raise StoreError(f"{self.url} has no multipart uploads to abort", path=upload.path)
        self._multipart.abort(upload)

    def sweep(self) -> None:
        """See `Store.sweep`: objects appear whole, so there are no temps, only what probes left."""
        self.sweep_probes()

    def sweep_probes(self) -> None:
        """See `Store.sweep_probes`."""
        for info in self.list(f"{RESERVED}/{PROBE}"):
            self.delete(info.path)
        if self._multipart is not None and self._found().capabilities.multipart:
            self._multipart.sweep(f"{RESERVED}/{PROBE}")

    def close(self) -> None:
        """See `Store.close`."""
        self._buffers.clear()
        self._objects.close()

    @contextmanager
    def _buffer(self, size_bytes: int) -> Iterator[tuple[Buffer, memoryview]]:
        """What to put, and a view to fill it through."""
        if self._objects.views:
            with self._buffers.take(size_bytes) as view:
                yield view, view
        else:
            data = bytearray(size_bytes)
            with memoryview(data) as view:
                yield data, view

    def _create_only(self, path: str, *, replace: bool, honoured: bool) -> bool:
        """Whether to ask the server to refuse an existing name; where that means nothing to it, look first."""
        if not replace and not honoured and self.head(path) is not None:
            raise ObjectExistsError(f"put {self.url}/{path}: there is an object under that name", path=path)
        return not replace and honoured

    def _check_size(self, file: FileRecord) -> None:
        found = self.head(file.path)
        if found is None or found.bytes != file.bytes:
            seen = "nothing" if found is None else f"{found.bytes} bytes"
            raise StoreUnavailableError(
                f"put {self.url}/{file.path}: the server said yes and shows {seen} instead of {file.bytes} bytes",
                path=file.path,
            )
