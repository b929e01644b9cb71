"""A file that formats write straight through, front to back, to wherever its bytes go."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from ray_sink.filesystem import Append

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_GATHERED_BYTES = 2**20
_STEP_BYTES = 2**20


class _AppendOnly(io.RawIOBase):
    def __init__(self, append: Append) -> None:
        self._append = append
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        # in steps that the processor's cache holds: the checksum reads them, and the kernel after it
        for start in range(0, len(view), _STEP_BYTES):
            self._append(view[start : start + _STEP_BYTES])
        self._at += len(view)
        return len(view)


def append_file(append: Append) -> BinaryIO:
    """A file for writing that cannot seek; small writes are gathered. `flush` it at the end."""
    return io.BufferedWriter(_AppendOnly(append), _GATHERED_BYTES)
