"""Writers that are being started, and for how long their producers wait; without Ray."""

from __future__ import annotations

from ray_sink.runtime.messages import WriterInfo
from ray_sink.runtime.starts import Due, Start, Starts

LATE_S = 15.0
START_S = 180.0
STORAGE_WAIT_S = 900.0


class Cluster:
    """Starts by number: of writers for that number's node, sent to a node beside it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.starts = Starts(STORAGE_WAIT_S, clock=lambda: self.now_s)

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            self.starts.begin(number, WriterInfo(f"w{number}", f"n{number}"), f"beside-n{number}")

    def after(self, wait_s: float, serving: int) -> Due:
        self.now_s += wait_s
        return self.starts.due(serving=serving)


def nodes(starts: list[Start]) -> list[str]:
    return [start.writer.node for start in starts]


def test_others_serve_soon_and_are_told_once() -> None:
    cluster = Cluster()
    cluster.begin(1)
    assert cluster.after(LATE_S - 1, serving=1).others == []
    assert nodes(cluster.after(1, serving=1).others) == ["n1"]
    assert cluster.after(1, serving=1).others == []
    assert list(cluster.starts) == [1], "it may still come"


def test_few_writers_are_not_given_the_producers_of_many_that_are_late() -> None:
    cluster = Cluster()
    cluster.begin(1, 2, 3, 4)
    assert cluster.after(LATE_S, serving=3).others == []
    assert nodes(cluster.after(1, serving=4).others) == ["n1", "n2", "n3", "n4"]


def test_few_writers_are_given_them_where_the_many_are_very_late() -> None:
    cluster = Cluster()
    cluster.begin(1, 2)
    assert cluster.after(START_S - 1, serving=1).others == []
    assert nodes(cluster.after(1, serving=1).others) == ["n1", "n2"]


def test_those_that_are_not_late_do_not_count_as_late() -> None:
    cluster = Cluster()
    cluster.begin(1)
    cluster.now_s += LATE_S
    cluster.begin(2, 3)
    assert nodes(cluster.after(0, serving=1).others) == ["n1"]


def test_a_start_that_failed_counts_from_its_first_try() -> None:
    cluster = Cluster()
    cluster.begin(1)
    cluster.now_s += LATE_S - 1
    cluster.starts.end(1, failed=True)
    cluster.begin(1)
    assert nodes(cluster.after(1, serving=1).others) == ["n1"]


def test_so_does_each_of_several_for_one_node() -> None:
    cluster = Cluster()
    for ref in ("a", "b"):
        cluster.starts.begin(ref, WriterInfo(ref, "n1"), None)
    cluster.now_s += LATE_S
    for ref in ("a", "b"):
        cluster.starts.end(ref, failed=True)
    for ref in ("c", "d"):
        cluster.starts.begin(ref, WriterInfo(ref, "n1"), None)
    assert len(cluster.after(0, serving=2).others) == 2


def test_so_does_one_whose_node_is_gone() -> None:
    cluster = Cluster()
    cluster.begin(1, 2)
    cluster.starts.begin(3, WriterInfo("w3", "n3"), None)
    cluster.now_s += LATE_S
    assert [writer.node for writer in cluster.starts.off({"beside-n2"})] == ["n1"]
    assert list(cluster.starts) == [2, 3], "Ray looks for another place where it chose the first"
    cluster.starts.end(2)
    cluster.starts.end(3)
    cluster.begin(1)
    assert nodes(cluster.after(0, serving=1).others) == ["n1"]


def test_the_next_one_after_a_start_counts_anew() -> None:
    cluster = Cluster()
    cluster.begin(1)
    cluster.now_s += LATE_S
    cluster.starts.end(1)
    cluster.begin(1)
    assert cluster.after(0, serving=1).others == []


def test_where_there_has_been_no_writer_it_is_given_up() -> None:
    cluster = Cluster()
    cluster.begin(1)
    assert cluster.after(START_S - 1, serving=0) == Due([], [], [], START_S)
    due = cluster.after(1, serving=0)
    assert (nodes(due.waiting), nodes(due.failed), due.failed_s) == (["n1"], ["n1"], START_S)
    assert not cluster.starts


def test_where_there_has_been_one_they_wait_as_long_as_for_storage_since_the_last() -> None:
    cluster = Cluster()
    cluster.begin(1)
    cluster.after(START_S, serving=1)
    due = cluster.after(STORAGE_WAIT_S - 1, serving=0)
    assert (due.waiting, due.failed) == ([], []), "it was said"
    due = cluster.after(1, serving=0)
    assert (nodes(due.failed), due.failed_s) == (["n1"], STORAGE_WAIT_S)
    assert not cluster.starts


def test_what_is_under_way_counts_by_whom_it_serves_and_by_where_it_goes() -> None:
    cluster = Cluster()
    cluster.begin(1)
    cluster.starts.begin(2, WriterInfo("w2", "n1"), None)
    assert cluster.starts.by_node() == {"n1": 2}
    assert cluster.starts.by_place() == {"beside-n1": 1}
    assert [writer.name for writer in cluster.starts.writers] == ["w1", "w2"]
