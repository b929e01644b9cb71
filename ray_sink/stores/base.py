"""What an object store is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ray_sink.records import FileRecord, MultipartUpload, Verification


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says about one object.

    Attributes:
        path: path relative to the destination.
        bytes: size in bytes.
        metadata: user metadata, percent-decoded; empty where the store holds none.
        checksum: ``"crc64nvme:…"`` where the store tells it, else None.
    """

    path: str
    bytes: int
    metadata: Mapping[str, str]
    checksum: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store keeps its word on, found by probing it.

    Attributes:
        create_only: a create-only put of an existing name is refused by the store itself. Where it is False, a put
            with ``replace=False`` looks first: that refuses what is there already and cannot settle a race.
        verification: whether the server checks our checksum or only the size can be compared.
        metadata: objects carry user metadata.
        multipart: large files go up in parts whose upload id is known beforehand.
    """

    create_only: bool
    verification: Verification
    metadata: bool
    multipart: bool


class SmallObjects(Protocol):
    """The part of a `Store` that claims and seals need.

    Attributes:
        url: the destination as the user gave it, without credentials.
    """

    url: str

    def put_bytes(self, path: str, data: bytes, *, replace: bool) -> None:
        """Put a small object."""

    def get_bytes(self, path: str) -> bytes:
        """Read a whole object."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose path begins with `prefix`, in no order; metadata may be missing."""

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens if it is gone."""


class Store(SmallObjects, Protocol):
    """One destination: a bucket and prefix, or a folder. Paths are relative to it.

    Used by the uploader's process only; blocking; every method may be called from several threads at once.

    Order of calls: 1. `probe`, once, before anything else is put (a store that was not probed probes itself at its
    first `put_file`); 2. `sweep`, by the run's owner, before its uploaders put; 3. everything else; 4. `close`.

    Atomic: a put appears whole under its name, or not at all, whatever dies when. `put_file` and `put_bytes` may be
    repeated: with ``replace=False`` a repeat that meets an object raises `ObjectExistsError`, and the caller looks at
    it with `head` before deciding whose it is.

    Errors: `ObjectExistsError`, `ObjectMissingError`, `StoreUnavailableError` (outcome unknown or try later),
    `DestinationError` (credentials, permissions, no such bucket), `StagedFileChangedError`, else `StoreError`. None
    of them holds a secret. `put_file`, `head` and `read_checksum` are tried once, because the uploader tries again;
    within one upload a part may be sent again. The small requests of claims and seals may be tried for some seconds.
    """

    def probe(self) -> Capabilities:
        """Find out, under ``_ray_sink/``, what this store keeps its word on; leaves nothing behind.

        The first call that succeeds looks; later ones return what it found.

        Raises:
            DestinationError: it cannot be reached or written; says so within seconds.
        """

    def held_bytes(self, file: FileRecord) -> int:
        """Bytes of memory that `put_file` holds for `file` while it runs."""

    def put_file(
        self,
        local: Path,
        file: FileRecord,
        *,
        metadata: Mapping[str, str],
        replace: bool,
        on_multipart: Callable[[MultipartUpload], None],
    ) -> Verification:
        """Put the staged file `local` under ``file.path``.

        Args:
            local: a complete local file.
            file: path, size and checksum that it must have. A file that differs raises `StagedFileChangedError`
                and nothing appears.
            metadata: small text values; the store percent-encodes them.
            replace: replace an object under that name instead of refusing.
            on_multipart: called with a multipart upload's id before its first part is sent.

        Raises:
            FileNotFoundError: there is no `local`.
        """

    def read_checksum(self, path: str) -> str:
        """Read a whole object, in pieces, and compute its ``"crc64nvme:…"``."""

    def head(self, path: str) -> ObjectInfo | None:
        """Look at an object; None where there is none."""

    def abort(self, upload: MultipartUpload) -> None:
        """Abort a multipart upload, parts in flight included; nothing happens if it is gone."""

    def sweep(self) -> None:
        """Remove temp files and probes that dead processes left at the destination.

        Only the owner of the destination calls it, and only while none of its own puts is running. A put of a dead
        owner that is still running afterwards fails, and nothing of it appears. Multipart uploads are not swept, but
        for those of probes: whoever journaled them aborts them.
        """

    def sweep_probes(self) -> None:
        """Remove the probes that dead processes left; puts may be running."""

    def close(self) -> None:
        """Let go of connections."""
