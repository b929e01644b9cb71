"""The journal: an append-only file of records, written by one process, read by those who take over.

Form of a file: `MAGIC`, then records. A record is a header of four little-endian u32 (payload length, CRC32 of the
payload, sequence number from 0, CRC32 of the first twelve header bytes) and a payload of UTF-8 JSON, which holds no NUL
byte. A crash can leave the last record short, or with sectors of zeros; anything else that does not fit its CRCs is
damage, and is said so.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ray_sink.errors import JournalCorruptError, RunError
from ray_sink.filesystem import Filesystem

MAGIC: Final = b"RSINKJ1\n"
_HEADER: Final = struct.Struct("<IIII")
_CHECKED: Final = struct.Struct("<III")
_SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One record as read back.

    Attributes:
        seq: its number in its file, from 0.
        end: offset of the first byte behind it.
        payload: what was appended.
    """

    seq: int
    end: int
    payload: Mapping[str, Any]


class Journal:
    """A journal file being written.

    After an error it takes no more: its end is unknown, and a new life of the ledger starts a new file.
    """

    def __init__(self, fs: Filesystem, path: Path) -> None:
        """Create the file exclusively.

        Raises:
            FileExistsError: another life of the ledger has this name.
        """
        self.path = path
        self._file = fs.create(path)
        self._seq = 0
        self._broken = False
        self._file.write(MAGIC)
        self._file.sync()
        fs.sync_dir(path.parent)

    def append(self, payload: Mapping[str, Any]) -> int:
        """Append one record; when this returns it survives a power cut.

        Returns:
            The record's sequence number.

        Raises:
            RunError: an earlier append failed.
            OSError: this one failed; whether the record is there, only a reader can tell.
        """
        if self._broken:
            raise RunError(f"journal {self.path} failed earlier and takes no more records: restart the ledger")
        data = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        checked = _CHECKED.pack(len(data), zlib.crc32(data), self._seq)
        self._broken = True
        self._file.write(checked + struct.pack("<I", zlib.crc32(checked)) + data)
        self._file.sync()
        self._broken = False
        self._seq += 1
        return self._seq - 1

    def close(self) -> None:
        """Close the file."""
        self._broken = True
        self._file.close()


def read_journal(data: bytes, *, name: str, end: int | None = None, live: bool = False) -> Iterator[JournalRecord]:
    """The records of a journal file, up to its torn end.

    Args:
        data: the file's contents.
        name: for messages.
        end: read only this far, and insist on every byte up to there.
        live: its writer may be alive, and what looks damaged may be a stale view of the tail: stop quietly.

    Raises:
        JournalCorruptError: a record is damaged in a way that no crash explains.
    """
    if end is not None:
        if len(data) < end:
            raise JournalCorruptError(f"journal {name} has {len(data)} bytes; {end} were there before")
        data = data[:end]
    if not data.startswith(MAGIC):
        if live or (end is None and not data.strip(b"\0")) or MAGIC.startswith(data):
            return
        raise JournalCorruptError(f"{name} is no journal: it begins with {data[:8]!r}")
    at, seq = len(MAGIC), 0
    while at < len(data):
        payload = _record_at(data, at, seq)
        if payload is None:
            if live:
                return
            if end is None and _explained_by_crash(data, at, seq):
                return
            raise JournalCorruptError(
                f"journal {name}: record {seq} at byte {at} is damaged. Restore the file from a backup, or start a new"
                " run under another run_id; nothing was dropped"
            )
        at += _HEADER.size + len(payload)
        yield JournalRecord(seq, at, json.loads(payload))
        seq += 1


def _record_at(data: bytes, at: int, seq: int) -> bytes | None:
    header = data[at : at + _HEADER.size]
    if len(header) < _HEADER.size:
        return None
    length, crc, number, header_crc = _HEADER.unpack(header)
    if zlib.crc32(header[: _CHECKED.size]) != header_crc or number != seq:
        return None
    payload = data[at + _HEADER.size : at + _HEADER.size + length]
    return payload if len(payload) == length and zlib.crc32(payload) == crc else None


def _explained_by_crash(data: bytes, at: int, seq: int) -> bool:
    """Whether the bad record at `at` is an append that a crash cut short: bytes missing, or whole sectors of zeros.

    An append follows only a successful fsync of the one before, so the record that a crash cut is the last one.
    """
    body = at + _HEADER.size
    if len(data) < body:
        return True
    length, _, _, header_crc = _HEADER.unpack(data[at:body])
    if zlib.crc32(data[at : at + _CHECKED.size]) != header_crc:
        sector_end = min(len(data), -(-body // _SECTOR_BYTES) * _SECTOR_BYTES)
        return _lost_sector(data, at, sector_end) and not _has_record(data, body, seq + 1)
    if len(data) < body + length:
        return True
    return not data[body + length :].strip(b"\0") and _lost_sector(data, body, body + length)


def _has_record(data: bytes, start: int, seq: int) -> bool:
    """Whether the header of record `seq` is anywhere behind `start`: what lies before it was synced then."""
    number = struct.pack("<I", seq)
    found = data.find(number, start)
    while found >= 0:
        at = found - 8
        header = data[at : at + _HEADER.size]
        whole = at >= start and len(header) == _HEADER.size
        if whole and zlib.crc32(header[: _CHECKED.size]) == _HEADER.unpack(header)[3]:
            return True
        found = data.find(number, found + 1)
    return False


def _lost_sector(data: bytes, start: int, end: int) -> bool:
    """Whether one of the disk sectors under ``data[start:end]`` reads as zeros. JSON itself holds no NUL."""
    edges = [start, *range((start // _SECTOR_BYTES + 1) * _SECTOR_BYTES, end, _SECTOR_BYTES), end]
    return any(not data[left:right].strip(b"\0") for left, right in pairwise(edges))
