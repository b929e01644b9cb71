"""CRC64NVME, the checksum of every receipt.

S3 checks it on whole objects, multipart uploads included, and awscrt computes it in hardware:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

from awscrt.checksums import crc64nvme

PREFIX: Final = "crc64nvme:"


class Checksum:
    """A running CRC64NVME."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in more bytes."""
        # awscrt reads only flat byte buffers
        flat = data if isinstance(data, bytes | bytearray) else data.cast("B")
        self._value = crc64nvme(flat, self._value)

    @property
    def text(self) -> str:
        """As receipts hold it: ``"crc64nvme:"`` and 16 hex digits."""
        return f"{PREFIX}{self._value:016x}"


def checksum_of(chunks: Iterable[bytes | bytearray | memoryview]) -> str:
    """The checksum of the concatenation of `chunks`."""
    running = Checksum()
    for chunk in chunks:
        running.update(chunk)
    return running.text


def to_base64(text: str) -> str:
    """A receipt's checksum in the form of S3's ``x-amz-checksum-crc64nvme`` header."""
    return base64.b64encode(bytes.fromhex(text.removeprefix(PREFIX))).decode()


def from_base64(header: str) -> str:
    """The inverse of `to_base64`."""
    return PREFIX + base64.b64decode(header).hex()
