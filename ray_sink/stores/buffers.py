"""Memory for files on their way to a store, in pages that are touched as seldom as may be.

Fresh memory comes page by page, each cleared by the kernel, and that takes longer than to read a file, compute its
checksum and send it: 1 MiB read into memory at hand is five times as fast as into `bytes` of its own.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# the size of a huge page; below the lower bound malloc hands out what it has just taken back
KEPT_BYTES: Final = 2 * 2**20
_SMALL_BYTES: Final = 128 * 2**10
_MOST_IDLE: Final = 16


def held_bytes(size_bytes: int) -> int:
    """Bytes of memory that a buffer for `size_bytes` takes."""
    return max(size_bytes, KEPT_BYTES) if size_bytes > _SMALL_BYTES else size_bytes


class Buffers:
    """Gives out buffers; some of the middle size are kept for the next one, 32 MiB in all. Any thread may call.

    Args:
        limit_bytes: none are kept beyond that, together with those that are out.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._out_bytes = 0
        self._counting = threading.Lock()
        self._idle: list[mmap.mmap] = []

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[memoryview]:
        """A writable buffer of `size_bytes`, contents undefined, good for the length of the block.

        Whoever got hold of the buffer in there may keep it for longer, as a client does that gave a request up with
        its body half sent: it is never given out again then, and goes when the last of them lets go.
        """
        if size_bytes <= _SMALL_BYTES:
            yield memoryview(bytearray(size_bytes))
            return
        kept = size_bytes <= KEPT_BYTES
        pages: mmap.mmap | None = None
        # the last one in is the one that caches still hold; a list's own operations are atomic
        with suppress(IndexError):
            pages = self._idle.pop() if kept else None
        with self._out(held_bytes(size_bytes)):
            if pages is None:
                pages = _pages(held_bytes(size_bytes))
            whole = memoryview(pages)
            view = whole[:size_bytes]
            try:
                yield view
            finally:
                # An error's traceback would hold the memory through all the pause before the next try. Memory that
                # somebody looks at refuses to change its size, even to what it is; no mremap here, and it is not kept.
                with suppress(BufferError, SystemError):
                    view.release()
                    whole.release()
                    if kept and len(self._idle) < self._most_idle(1):
                        pages.resize(KEPT_BYTES)
                        self._idle.append(pages)
                    else:
                        pages.close()

    @contextmanager
    def _out(self, n_bytes: int) -> Iterator[None]:
        self._count(n_bytes)
        try:
            yield
        finally:
            self._count(-n_bytes)

    def _count(self, n_bytes: int) -> None:
        with self._counting:
            self._out_bytes += n_bytes
        while len(self._idle) > self._most_idle():
            with suppress(IndexError):  # somebody else has taken it
                self._idle.pop(0)

    def _most_idle(self, coming_back: int = 0) -> int:
        left_bytes = self._limit_bytes - self._out_bytes + coming_back * KEPT_BYTES
        return min(_MOST_IDLE, max(0, left_bytes) // KEPT_BYTES)

    def clear(self) -> None:
        """Let go of what is idle."""
        self._idle.clear()


def _pages(size_bytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # a kernel without huge pages does what it can
    with suppress(OSError, AttributeError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
