"""Room in the shared staging folder: plain arithmetic."""

from __future__ import annotations

from ray_sink.runtime.staging_room import StagingRoom


def test_what_is_staged_reserved_and_not_yet_freed_shares_it() -> None:
    room = StagingRoom(100)
    assert room.reserve("w1", "a", 40, staged_bytes=30)
    assert not room.reserve("w1", "b", 40, staged_bytes=30)
    room.done("w1", "a")
    assert not room.reserve("w1", "b", 40, staged_bytes=70), "it is staged now"
    room.frees(0, 40)
    assert not room.reserve("w1", "b", 40, staged_bytes=30), "it is still there"
    room.frees(0, 0)
    assert room.reserve("w1", "b", 40, staged_bytes=30)


def test_who_asks_again_has_it_once() -> None:
    room = StagingRoom(100)
    for _ in range(3):
        assert room.reserve("w1", "a", 60, staged_bytes=0)
    assert room.reserve("w1", "b", 40, staged_bytes=0)


def test_one_above_the_whole_of_it_goes_alone() -> None:
    room = StagingRoom(100)
    assert not room.reserve("w1", "a", 500, staged_bytes=1)
    assert room.reserve("w1", "a", 500, staged_bytes=0)
    assert not room.reserve("w1", "b", 1, staged_bytes=0)


def test_a_place_in_the_line_is_kept_until_it_is_done() -> None:
    room = StagingRoom(100)
    first, second = room.place("w1", "a"), room.place("w2", "b")
    assert 0 < first < second
    assert (room.place("w1", "a"), room.place("w2", "b")) == (first, second)
    room.done("w1", "a")
    assert room.place("w1", "a") > second


def test_what_a_writer_that_is_gone_had_reserved_is_free() -> None:
    room = StagingRoom(100)
    for writer in ("w1", "w2"):
        room.place(writer, writer)
        assert room.reserve(writer, writer, 50, staged_bytes=0)
    room.keep({"w2"})
    assert not room.reserve("w2", "b", 60, staged_bytes=0)
    assert room.reserve("w2", "b", 50, staged_bytes=0)


def test_what_it_asked_before_it_was_gone_reserves_nothing_and_holds_nobody_up() -> None:
    room = StagingRoom(100)
    room.keep({"w2"})
    room.place("w1", "late")
    assert room.reserve("w1", "late", 100, staged_bytes=0)
    assert room.reserve("w2", "b", 100, staged_bytes=0)


def test_writers_that_have_not_been_said_yet_are_taken_at_their_word() -> None:
    room = StagingRoom(100)
    room.place("w1", "a")
    assert room.reserve("w1", "a", 100, staged_bytes=0)
    assert not room.reserve("w2", "b", 1, staged_bytes=0)
    room.keep({"w1", "w2"})
    assert not room.reserve("w2", "b", 1, staged_bytes=0)
