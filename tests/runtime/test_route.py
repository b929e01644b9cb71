"""Which writer a producer's next batch goes to; without Ray."""

from __future__ import annotations

import pytest

from ray_sink.errors import SinkError
from ray_sink.runtime.messages import WriterInfo
from ray_sink.runtime.route import Route

MINE, SECOND, THEIRS = (WriterInfo(name, node) for name, node in (("w1", "n1"), ("w2", "n1"), ("w3", "n2")))


class Roster:
    """What the coordinator would answer, and what it was asked."""

    def __init__(self, *writers: WriterInfo) -> None:
        self.writers = writers
        self.asked: list[str | None] = []
        self.now_s = 100.0

    def answer(self, gone: str | None) -> list[WriterInfo]:
        self.asked.append(gone)
        if not self.writers:
            raise SinkError("no room")
        return list(self.writers)

    def route(self) -> Route:
        return Route("n1", self.answer, clock=lambda: self.now_s)


def test_the_one_with_the_least_to_do_gets_it() -> None:
    route = Roster(MINE, SECOND).route()
    assert route.take(10) is MINE
    assert route.take(4) is SECOND
    assert route.take(4) is SECOND
    assert route.take(4) is SECOND
    assert route.take(1) is MINE
    route.replied("w1", 10)
    assert route.take(1) is MINE


def test_one_that_leaves_gets_nothing_more_and_others_are_asked_for() -> None:
    roster = Roster(MINE)
    route = roster.route()
    assert route.take(1) is MINE
    route.replied("w1", 1, leaving=True)
    assert route.take(1) is None
    roster.writers = (SECOND,)
    route.renew("w1")
    assert roster.asked == [None, "w1"]
    assert route.take(1) is SECOND


def test_who_is_served_by_others_goes_home_and_asks_for_it_now_and_then() -> None:
    roster = Roster(THEIRS)
    route = roster.route()
    route.look_home()
    assert roster.asked == [None], "it has just asked"
    roster.now_s += 5
    route.look_home()
    assert roster.asked == [None, None]
    assert route.take(1) is THEIRS
    roster.writers = (MINE,)
    route.look_home()
    assert route.take(1) is THEIRS
    roster.now_s += 5
    route.look_home()
    assert route.take(1) is MINE
    roster.now_s += 5
    route.look_home()
    assert len(roster.asked) == 3, "it is at home"


def test_who_cannot_be_told_keeps_those_that_it_has() -> None:
    roster = Roster(THEIRS)
    route = roster.route()
    roster.writers = ()
    roster.now_s += 5
    with pytest.raises(SinkError, match="no room"):
        route.look_home()
    assert route.take(1) is THEIRS
