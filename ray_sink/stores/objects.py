"""The single requests that an engine makes, below what `ray_sink.stores.object_store` builds from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from ray_sink.filesystem import Buffer
from ray_sink.stores.base import ObjectInfo


class Objects(Protocol):
    """One bucket and prefix, seen through one client library.

    Paths are relative to the prefix. Errors are those of `ray_sink.stores.base.Store`; every request is made once.
    """

    def put(
        self, path: str, data: Buffer, *, metadata: Mapping[str, str], create_only: bool, checksum: str | None
    ) -> None:
        """Put one object in one request.

        Args:
            path: its name.
            data: its contents.
            metadata: header values, encoded already.
            create_only: ask the server to refuse an existing name.
            checksum: that of `data`; sent along as CRC64NVME unless None.
        """

    def put_stream(self, path: str, chunks: Iterator[bytes], *, metadata: Mapping[str, str]) -> None:
        """Put an object too large for memory; it appears whole, and not at all if `chunks` raises."""

    def get(self, path: str) -> Iterator[bytes]:
        """An object's contents in pieces."""

    def head(self, path: str) -> ObjectInfo | None:
        """Look at an object; None where there is none."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose path begins with `prefix`."""

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens if it is gone."""

    def close(self) -> None:
        """Let go of connections."""
