"""Reading a staged file into memory: what was read is what was checked, and the memory goes back with it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ray_sink.errors import StagedFileChangedError
from ray_sink.records import FileRecord
from ray_sink.stores.staged import read_staged
from tests.stores.conftest import staged

MiB = 2**20


@pytest.mark.parametrize("size", [0, 1, MiB, MiB + 1, 5 * MiB])
def test_the_whole_file_is_read_and_one_that_changed_is_refused(tmp_path: Path, size: int) -> None:
    local, file = staged(tmp_path, "a.pt", b"ab" * (size // 2) + b"c" * (size % 2))
    assert bytes(read_staged(local, file)) == local.read_bytes()
    for other in (replace(file, bytes=size + 1), replace(file, checksum="crc64nvme:" + 16 * "1")):
        with pytest.raises(StagedFileChangedError):
            read_staged(local, other)
    local.write_bytes(local.read_bytes() + b"x")
    with pytest.raises(StagedFileChangedError):
        read_staged(local, file)


def test_threads_keep_nothing_of_the_large_files_they_read(tmp_path: Path) -> None:
    local, file = staged(tmp_path, "a.pt", bytes(20 * MiB))
    for _ in range(3):
        _kept_after(local, file, 1)  # as in a process that has been at it for a while
    assert _kept_after(local, file, 8) < 3 * 20 * MiB


def _kept_after(local: Path, file: FileRecord, threads: int) -> int:
    """Bytes that living threads keep after each has read the file some times."""
    before = _resident_bytes()
    together, ended, leave = threading.Barrier(threads), threading.Barrier(threads + 1), threading.Event()

    def read() -> None:
        for _ in range(3):
            held = read_staged(local, file)
            together.wait()
            del held
        ended.wait()
        leave.wait()

    workers = [threading.Thread(target=read) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ended.wait()
    kept = _resident_bytes() - before
    leave.set()
    for worker in workers:
        worker.join()
    return kept


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])
