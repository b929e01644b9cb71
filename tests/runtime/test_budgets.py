"""Leases of the object store, and the roster of writers: plain arithmetic, no Ray."""

from __future__ import annotations

import threading

import pytest

from ray_sink.errors import SinkError, StagingError
from ray_sink.runtime.credits import LEASE_S, Budget, Credits
from ray_sink.runtime.lease import Lease
from ray_sink.runtime.messages import WriterInfo
from ray_sink.runtime.roster import Roster
from tests.waiting import until


def test_leases_never_exceed_the_budget() -> None:
    budget = Budget(100)
    assert budget.lease("a", 30, want_bytes=200) == 50  # more than needed, while half stays free
    assert budget.lease("b", 50) == 50
    assert budget.lease("c", 1) == 0
    budget.set("a", 30)
    assert budget.lease("c", 20) == 20
    assert budget.free_bytes == 0


def test_an_oversized_item_goes_when_nobody_holds_anything() -> None:
    budget = Budget(100)
    assert budget.lease("a", 10) == 10
    assert budget.lease("big", 500) == 0
    budget.set("a", 0)
    assert budget.lease("big", 500) == 500
    assert budget.lease("a", 1) == 0
    budget.set("big", 0)
    assert budget.lease("a", 1) == 1


def test_a_lease_asks_only_when_it_has_no_room() -> None:
    asked: list[tuple[int, int, int]] = []

    def acquire(held: int, granted: int, need: int) -> int:
        asked.append((held, granted, need))
        return 4 * need

    lease = Lease(100, acquire)
    for _ in range(4):
        lease.take(1, 10)
    assert asked == [(0, 0, 10)]
    lease.take(1, 10)
    assert asked == [(0, 0, 10), (40, 40, 10)]
    lease.free_bytes(30)
    assert lease.trim() == (20, 80)
    lease.take(1, 10)
    assert asked[-1] == (20, 80, 10)


def test_a_lease_gives_up_what_lies_idle_before_it_asks() -> None:
    budget = Budget(100)

    def acquire(held: int, granted: int, need: int) -> int:
        budget.set("me", held)
        return budget.lease("me", need)

    lease = Lease(100, acquire)
    lease.take(1, 60)
    lease.free_bytes(60)
    lease.take(1, 500)  # above the whole budget: held bytes in the way would stop it for ever
    assert (budget.held_by("me"), budget.held_bytes) == (500, 500)


def test_too_many_outputs_wait_for_a_receipt() -> None:
    lease = Lease(2, lambda held, granted, need: need)
    lease.take(2, 1)
    entered = threading.Event()

    def third() -> None:
        lease.take(1, 1)
        entered.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert not entered.wait(0.1)
    lease.free_outputs(1)
    until(entered.is_set)
    thread.join()
    assert lease.outputs == 2


def test_an_acquire_that_fails_leaves_the_lease_as_it_was() -> None:
    def acquire(held: int, granted: int, need: int) -> int:
        raise StagingError("gone")

    lease = Lease(2, acquire)
    with pytest.raises(StagingError):
        lease.take(2, 1)
    assert lease.outputs == 0


def test_the_roster_wants_writers_where_producers_are() -> None:
    roster = Roster(per_node=2)
    assert not roster.wish()
    roster.want("n1")
    assert roster.wish().missing == {"n1": 2}
    roster.update([WriterInfo("w1", "n1", actor=object())], {"n1": 1})
    assert not roster.wish()
    assert [writer.name for writer in roster.serving("n1")] == ["w1"]


def test_a_dead_writer_is_named_and_replaced() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    roster.update([WriterInfo("w1", "n1", actor=object())], {})
    roster.fail("w1")
    assert roster.serving("n1") == []
    wish = roster.wish()
    assert wish.failed == ("w1",)
    assert wish.missing == {"n1": 1}
    roster.update([WriterInfo("w2", "n1", actor=object())], {})
    assert not roster.wish()
    roster.fail("w1")  # a late report about one that is gone
    assert not roster.wish()


def test_a_node_that_is_gone_gets_no_writer_but_where_somebody_there_asks_again() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    roster.want("n2")
    roster.update([], {}, gone=frozenset({"n2"}))
    assert roster.wish().missing == {"n1": 1}
    roster.update([], {})
    assert roster.wish().missing == {"n1": 1}
    roster.want("n2")
    assert roster.wish().missing == {"n1": 1, "n2": 1}


def test_a_node_that_can_have_no_writer_says_why() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    roster.update([WriterInfo("w1", "n1", error=StagingError("not mounted"))], {})
    with pytest.raises(StagingError, match="not mounted"):
        roster.serving("n1")


def test_producers_on_a_node_that_drains_have_the_writers_of_others() -> None:
    roster = Roster(per_node=2)
    roster.want("n1")
    roster.want("n2")
    mine, others = WriterInfo("w1", "n1", actor=object()), WriterInfo("w2", "n2", actor=object())
    roster.update([mine, others], {"n1": 1, "n2": 1})
    assert roster.serving("n1") == [mine]
    roster.update([others], {"n2": 1}, frozenset({"n1"}))
    assert not roster.wish(), "nothing is started for a node that goes"
    assert roster.serving("n1") == [others]


def test_a_writer_whose_node_drains_serves_until_another_does() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    old = WriterInfo("w1", "n1", place="w", actor=object(), going=True)
    roster.update([old], {}, frozenset({"w"}))
    assert roster.wish().missing == {"n1": 1}
    assert [writer.name for writer in roster.serving("n1")] == ["w1"]
    failed = WriterInfo("w2", "n1", error=SinkError("no room"))
    roster.update([old, failed], {}, frozenset({"w"}))
    assert [writer.name for writer in roster.serving("n1")] == ["w1"]
    roster.update([old, WriterInfo("w3", "n1", place="x", actor=object())], {}, frozenset({"w"}))
    assert not roster.wish()
    assert [writer.name for writer in roster.serving("n1")] == ["w3"]


def test_producers_whose_writer_is_long_in_coming_have_those_of_others() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    roster.want("n2")
    awaited, others = WriterInfo("w1", "n1"), WriterInfo("w2", "n2", actor=object())
    roster.update([others], {"n1": 1})
    assert roster.serving("n1") == [], "it may come at any moment"
    roster.update([others, awaited], {"n1": 1})
    assert not roster.wish()
    assert roster.serving("n1") == [others]
    roster.update([awaited], {"n1": 1, "n2": 1})
    assert roster.serving("n1") == []
    mine = WriterInfo("w1", "n1", actor=object())
    roster.update([others, mine], {})
    assert roster.serving("n1") == [mine]


def test_a_writer_that_is_long_in_coming_counts_once() -> None:
    roster = Roster(per_node=2)
    roster.want("n1")
    roster.update([WriterInfo("w1", "n1"), WriterInfo("w2", "n2", actor=object())], {"n1": 1})
    assert roster.wish().missing == {"n1": 1}


def test_producers_and_their_writer_on_a_node_that_drains_are_taken_on_by_others() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    roster.want("n2")
    old = WriterInfo("w1", "n1", place="n1", actor=object(), going=True)
    roster.update([old, WriterInfo("w2", "n2", place="n2", actor=object())], {}, frozenset({"n1"}))
    assert not roster.wish()
    assert [writer.name for writer in roster.serving("n1")] == ["w2"]


def test_where_nobody_else_has_a_writer_one_is_started_for_a_node_that_drains() -> None:
    roster = Roster(per_node=2)
    roster.want("n1")
    roster.update([], {}, frozenset({"n1"}))
    assert roster.wish().missing == {"n1": 1}
    roster.update([], {"n1": 1}, frozenset({"n1"}))
    assert not roster.wish()


def test_a_node_that_has_drained_wants_no_writer() -> None:
    roster = Roster(per_node=1)
    roster.want("n1")
    roster.update([], {"n1": 1}, frozenset({"n1"}))
    roster.update([], {}, frozenset())
    assert not roster.wish()


def test_what_was_granted_to_one_that_never_spoke_again_is_given_to_others_after_a_while() -> None:
    now = 0.0
    credits_ = Credits(lambda node: 100, clock=lambda: now)
    credits_.asked("gone", "node", 0, 0)
    assert credits_.lease("gone", "node", 90) == 90
    credits_.asked("waiting", "node", 0, 0)
    now = LEASE_S
    assert credits_.lease("waiting", "node", 50) == 0
    now += 1
    assert credits_.lease("waiting", "node", 50) == 50
    assert credits_.held_bytes == 50


def test_what_a_silent_producer_held_is_given_to_others_after_a_while() -> None:
    now = 0.0
    credits_ = Credits(lambda node: 100, clock=lambda: now)
    credits_.said("gone", "node", 90, 90)
    credits_.said("elsewhere", "other", 90, 90)
    credits_.asked("waiting", "node", 0, 0)
    now = LEASE_S
    assert credits_.lease("waiting", "node", 50) == 0
    now += 1
    assert credits_.lease("waiting", "node", 50) == 50
    assert credits_.lease("other's", "other", 50) == 50, "who was silent there is gone, too"
    credits_.said("gone", "node", 90, 90)
    assert credits_.lease("late", "node", 1) == 0, "it was alive, and is counted again"
