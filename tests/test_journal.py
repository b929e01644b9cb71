"""The journal: what was appended is read back, a torn end is dropped, damage is said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from ray_sink.errors import JournalCorruptError, RunError
from ray_sink.journal import MAGIC, Journal, read_journal
from tests.model.disk import Disk, Fault, View
from tests.model.script import Process, Script

PATH = Path("/disk/_ray_sink/journal")
PAYLOADS: list[dict[str, object]] = [
    {"is": "x-1", "text": "ä\0"},
    {"is": "x-2", "list": [1, None, "y" * 1300]},
    {"is": "x-3"},
]


@pytest.fixture
def fs() -> View:
    made = Disk(Script()).view(Process("ledger"))
    made.make_dirs(PATH.parent, below=made.disk.root)
    return made


def written(fs: View, payloads: list[dict[str, object]]) -> bytes:
    journal = Journal(fs, PATH)
    for number, payload in enumerate(payloads):
        assert journal.append(payload) == number
    journal.close()
    return fs.read(PATH)


def payloads_of(data: bytes) -> list[object]:
    return [dict(record.payload) for record in read_journal(data, name="j")]


def ends_of(data: bytes) -> list[int]:
    return [len(MAGIC), *(record.end for record in read_journal(data, name="j"))]


def test_what_was_appended_is_read_back_in_order(fs: View) -> None:
    data = written(fs, PAYLOADS)
    assert payloads_of(data) == PAYLOADS
    records = list(read_journal(data, name="j"))
    assert [record.seq for record in records] == [0, 1, 2]
    assert records[-1].end == len(data)


def test_every_append_survives_a_power_cut(fs: View) -> None:
    journal = Journal(fs, PATH)
    journal.append(PAYLOADS[0])
    journal.append(PAYLOADS[1])
    fs.disk.power_cut(lambda n: 0)
    assert payloads_of(fs.read(PATH)) == PAYLOADS[:2]


def test_a_second_life_cannot_take_the_name(fs: View) -> None:
    Journal(fs, PATH)
    with pytest.raises(FileExistsError):
        Journal(fs, PATH)


def test_a_tail_cut_at_any_byte_is_dropped_and_all_before_it_kept(fs: View) -> None:
    data = written(fs, PAYLOADS)
    ends = ends_of(data)
    for size in range(len(data) + 1):
        assert payloads_of(data[:size]) == PAYLOADS[: sum(end <= size for end in ends[1:])]


def test_sectors_of_zeros_in_the_unfinished_record_are_dropped(fs: View) -> None:
    data = written(fs, PAYLOADS[:2])
    start = ends_of(data)[1]
    sectors = [start, *range(512, len(data), 512), len(data)]
    for left, right in pairwise(sectors):
        torn = data[:left] + bytes(right - left) + data[right:]
        assert payloads_of(torn) == PAYLOADS[:1], (left, right)


def test_zeros_over_a_whole_record_or_the_whole_file_are_dropped(fs: View) -> None:
    data = written(fs, PAYLOADS)
    last = ends_of(data)[2]
    assert payloads_of(data[:last] + bytes(len(data) - last)) == PAYLOADS[:2]
    assert payloads_of(data + bytes(4096)) == PAYLOADS
    assert payloads_of(bytes(4096)) == []


def test_a_flipped_bit_in_a_complete_record_is_detected_wherever_it_is(fs: View) -> None:
    data = written(fs, [PAYLOADS[0], {"is": "x-short"}, PAYLOADS[2]])
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(JournalCorruptError):
                list(read_journal(bytes(flipped), name="j"))


def test_zeros_in_the_middle_are_damage_and_hide_no_later_record(fs: View) -> None:
    long: dict[str, object] = {"is": "x-long", "text": "z" * 900}
    data = written(fs, [long, long, long])
    for left in range(0, len(data) - 1536, 512):
        torn = data[: max(left, len(MAGIC))] + bytes(left + 512 - max(left, len(MAGIC))) + data[left + 512 :]
        with pytest.raises(JournalCorruptError):
            list(read_journal(torn, name="j"))


def test_reading_up_to_an_end_insists_on_every_byte(fs: View) -> None:
    data = written(fs, PAYLOADS)
    ends = ends_of(data)
    assert len(list(read_journal(data, name="j", end=ends[2]))) == 2
    with pytest.raises(JournalCorruptError, match="were there before"):
        list(read_journal(data[: ends[2] - 1], name="j", end=ends[2]))
    with pytest.raises(JournalCorruptError):
        list(read_journal(data[: ends[1]] + bytes(len(data) - ends[1]), name="j", end=ends[2]))


def test_a_reader_beside_a_live_writer_stops_quietly_at_what_makes_no_sense_yet(fs: View) -> None:
    data = written(fs, PAYLOADS)
    middle = ends_of(data)[1] + 4
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    assert [dict(r.payload) for r in read_journal(flipped, name="j", live=True)] == PAYLOADS[:1]
    assert list(read_journal(b"nonsense", name="j", live=True)) == []


def test_another_file_is_no_journal() -> None:
    with pytest.raises(JournalCorruptError, match="no journal"):
        list(read_journal(b"PAR1 and more", name="j"))


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_after_an_error_it_takes_no_more(fs: View, kind: str) -> None:
    journal = Journal(fs, PATH)
    fs.disk.faults[kind] = Fault(after=False, times=1)
    with pytest.raises(OSError, match="error"):
        journal.append(PAYLOADS[0])
    with pytest.raises(RunError, match="restart"):
        journal.append(PAYLOADS[0])
