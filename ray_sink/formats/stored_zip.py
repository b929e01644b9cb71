"""A zip file of stored members, written front to back.

`zipfile` would go back to each member's header for its size and CRC, or leave both behind it, and computes the CRC with
zlib. Here both are known beforehand, so that any file that can be appended to will do, and the CRC is ISA-L's, some
three times as fast. Always ZIP64, so that the layout does not depend on the size:
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3, 4.5.3).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO, Final

from isal import isal_zlib

_VERSION: Final = 45  # ZIP64
_UTF8: Final = 1 << 11
_DATE: Final = 1 << 5 | 1  # 1980-01-01
_FILL32: Final = 0xFFFFFFFF
_FILL16: Final = 0xFFFF

_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_EXTRA: Final = struct.Struct("<HHQQ")
_PADDING: Final = struct.Struct("<2sH")  # under the name that torch gives it
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
_CENTRAL_EXTRA: Final = struct.Struct("<HHQQQ")
_END64: Final = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END: Final = struct.Struct("<4sHHHHIIH")
_MODE: Final = 0o600 << 16


class _Measured:
    """A file that keeps nothing but the size and the CRC of what is written."""

    def __init__(self) -> None:
        self.bytes = 0
        self.crc = 0

    def write(self, data: bytes | memoryview) -> int:
        self.crc = isal_zlib.crc32(data, self.crc)
        size = memoryview(data).nbytes
        self.bytes += size
        return size


class StoredZip:
    """Members one after the other, then `close`.

    Args:
        file: appended to; this is its beginning.
        alignment: where contents begin is a multiple of it, bytes; below 65,000. 1: anywhere.
    """

    def __init__(self, file: BinaryIO, *, alignment: int = 1) -> None:
        self._file = file
        self._alignment = alignment
        self._at = 0
        self._central: list[bytes] = []

    def add(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Add a member.

        Args:
            name: at most 65,535 bytes as UTF-8.
            write: writes the contents into the file that it gets; called twice, and must write the same.
        """
        measured = _Measured()
        write(measured)  # type: ignore[arg-type] # only `write` is called
        encoded = name.encode()
        flags = 0 if name.isascii() else _UTF8
        start = self._at
        sizes = (measured.bytes, measured.bytes)
        extra = _LOCAL_EXTRA.pack(1, _LOCAL_EXTRA.size - 4, *sizes)
        if self._alignment > 1:
            missing = -(start + _LOCAL.size + len(encoded) + len(extra) + _PADDING.size) % self._alignment
            extra += _PADDING.pack(b"FB", missing) + b"Z" * missing
        self._write(
            _LOCAL.pack(
                *(b"PK\3\4", _VERSION, flags, 0, 0, _DATE, measured.crc),
                *(_FILL32, _FILL32, len(encoded), len(extra)),
            )
            + encoded
            + extra
        )
        write(self._file)
        self._at += measured.bytes
        self._central.append(
            _CENTRAL.pack(
                *(b"PK\1\2", 3 << 8 | _VERSION, _VERSION, flags, 0, 0, _DATE, measured.crc),
                *(_FILL32, _FILL32, len(encoded), _CENTRAL_EXTRA.size, 0, 0, 0, _MODE, _FILL32),
            )
            + encoded
            + _CENTRAL_EXTRA.pack(1, _CENTRAL_EXTRA.size - 4, *sizes, start)
        )

    def close(self, comment: bytes = b"") -> None:
        """Write the directory; at most 65,535 bytes of comment."""
        start, count = self._at, len(self._central)
        for entry in self._central:
            self._write(entry)
        end = self._at
        size = end - start
        if not count:
            # readers know an empty archive by its beginning, which is this
            self._write(_END.pack(b"PK\5\6", 0, 0, 0, 0, 0, 0, len(comment)) + comment)
            return
        self._write(
            _END64.pack(b"PK\6\6", _END64.size - 12, 3 << 8 | _VERSION, _VERSION, 0, 0, count, count, size, start)
            + _LOCATOR.pack(b"PK\6\7", 0, end, 1)
            + _END.pack(b"PK\5\6", 0, 0, _FILL16, _FILL16, _FILL32, _FILL32, len(comment))
            + comment
        )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)
