from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from ray_sink.checksum import checksum_of
from ray_sink.errors import StagedFileChangedError
from ray_sink.records import FileRecord
from ray_sink.stores.buffers import KEPT_BYTES, Buffers, held_bytes
from ray_sink.stores.staged import read_staged

SIZES = [1, 2**10, 2**20, KEPT_BYTES, KEPT_BYTES + 1, 5 * 2**20]


@pytest.mark.parametrize("size", [0, *SIZES])
def test_a_buffer_has_the_size_that_was_asked_for_and_takes_no_more_memory_than_it_says(size: int) -> None:
    with Buffers(2**30).take(size) as view:
        assert view.nbytes == size <= held_bytes(size)
        assert not view.readonly


def test_memory_of_the_middle_size_is_used_again() -> None:
    buffers = Buffers(2**30)
    with buffers.take(2**20) as view:
        view[:5] = b"first"
    with buffers.take(2**20) as view:
        assert bytes(view[:5]) == b"first"


@pytest.mark.parametrize("size", SIZES)
def test_memory_that_somebody_still_holds_is_never_given_out_again(size: int) -> None:
    buffers = Buffers(2**30)
    with buffers.take(size) as view:
        view[:1] = b"1"
        held = memoryview(view)
    for _ in range(3):
        with buffers.take(size) as view:
            view[:1] = b"2"
    gc.collect()
    assert bytes(held[:1]) == b"1"


def test_no_more_is_kept_than_was_said() -> None:
    buffers = Buffers(2**30)

    def nest(depth: int) -> None:
        with buffers.take(2**20):
            if depth:
                nest(depth - 1)

    nest(40)
    assert len(buffers._idle) * KEPT_BYTES == 32 * 2**20
    buffers.clear()
    assert not buffers._idle


@pytest.mark.parametrize("size", [0, *SIZES])
@pytest.mark.parametrize("change", ["nothing", "one byte more", "one byte less", "another byte"])
def test_a_file_that_is_not_its_record_is_refused(tmp_path: Path, size: int, change: str) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    file = FileRecord("a", size, checksum_of([data]))
    changed = {
        "nothing": data,
        "one byte more": data + b"x",
        "one byte less": data[:-1],
        "another byte": b"\xff" + data[1:],
    }[change]
    (tmp_path / "a").write_bytes(changed)
    with Buffers(2**30).take(size) as view:
        if changed == data:
            read_staged(tmp_path / "a", file, view)
            assert bytes(view) == data
        else:
            with pytest.raises(StagedFileChangedError):
                read_staged(tmp_path / "a", file, view)


def test_a_client_of_c_that_still_holds_memory_keeps_it_too() -> None:
    buffers = Buffers(2**30)
    with buffers.take(2**20) as view:
        view[:1] = b"1"
        held = np.frombuffer(view, np.uint8)
    with buffers.take(2**20) as view:
        view[:1] = b"2"
    assert held[0] == ord("1")


def test_what_is_kept_and_what_is_out_stay_within_the_limit_together() -> None:
    buffers = Buffers(5 * KEPT_BYTES)

    def nest(depth: int) -> None:
        with buffers.take(2**20):
            if depth:
                nest(depth - 1)

    nest(4)
    assert len(buffers._idle) == 5
    with buffers.take(3 * KEPT_BYTES):
        assert len(buffers._idle) == 2
        with buffers.take(2**20):
            assert len(buffers._idle) == 1
        assert len(buffers._idle) == 2
        with buffers.take(9 * KEPT_BYTES):  # one that is larger than all goes alone
            assert not buffers._idle
