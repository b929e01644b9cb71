"""Writers that are being started, and what becomes of the producers that wait for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from ray_sink.runtime.messages import WriterInfo

_LATE_S = 15.0
"""More than most starts take."""
_START_S = 180.0
"""More than any takes that has room."""


@dataclass(frozen=True, slots=True)
class Start:
    """A writer that is being started.

    Attributes:
        writer: it, as it will be.
        place: id of the node that it was sent to; None: left to Ray.
        since_s: since when its producers want one, by the clock: earlier tries may have failed.
        others: others serve its producers meanwhile.
        named: that it is very late has been said.
    """

    writer: WriterInfo
    place: str | None
    since_s: float
    others: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done about those that are late.

    Attributes:
        others: others serve their producers from now on.
        waiting: they are very late; each is here once.
        failed: they are given up.
        failed_s: after so long, seconds.
    """

    others: list[Start]
    waiting: list[Start]
    failed: list[Start]
    failed_s: float


class Starts:
    """The writers that are being started, each by what it answers when it has.

    Args:
        storage_wait_s: how long producers wait for storage, seconds.
        clock: seconds, monotonic.
    """

    def __init__(self, storage_wait_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._storage_wait_s = storage_wait_s
        self._clock = clock
        self._starts: dict[Any, Start] = {}
        self._since_s: dict[str, list[float]] = {}
        self._served_s: float | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._starts))

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def writers(self) -> list[WriterInfo]:
        """As they will be."""
        return [start.writer for start in self._starts.values()]

    def by_node(self) -> Counter[str]:
        """How many there are, by the node whose producers they will serve."""
        return Counter(writer.node for writer in self.writers)

    def by_place(self) -> Counter[str]:
        """How many there are, by the node that they were sent to."""
        return Counter(start.place for start in self._starts.values() if start.place is not None)

    def begin(self, ref: Any, writer: WriterInfo, place: str | None) -> None:
        """One more. A try that failed before does not make its producers' wait longer."""
        tries_s = self._since_s.get(writer.node)
        self._starts[ref] = Start(writer, place, tries_s.pop() if tries_s else self._clock())

    def end(self, ref: Any, *, failed: bool = False) -> WriterInfo:
        """It has started, or never will; there will be another try where it has `failed`."""
        start = self._starts.pop(ref)
        if failed:
            self._since_s.setdefault(start.writer.node, []).append(start.since_s)
        return start.writer

    def off(self, places: Collection[str]) -> list[WriterInfo]:
        """End those that were sent elsewhere than to one of these nodes; there will be another try."""
        stuck = [ref for ref, start in self._starts.items() if start.place is not None and start.place not in places]
        return [self.end(ref, failed=True) for ref in stuck]

    def due(self, *, serving: int) -> Due:
        """What is to become of producers whose writer does not start: the cluster may have no room for it just now.

        Others serve them, if there are any: soon, but where more are late than serve, as when a large cluster starts,
        these few would have more than they can write, and what they were given stays with them when the others are
        there. Else they wait as long as for storage where there has been a writer before; where there has been none,
        what is asked for is probably nowhere.

        Args:
            serving: how many writers there are.
        """
        now_s = self._clock()
        if serving:
            self._served_s = now_s
        wait_s = _START_S if self._served_s is None else max(_START_S, self._storage_wait_s)
        late = sum(now_s - start.since_s >= _LATE_S for start in self._starts.values())
        others_s = _LATE_S if late <= serving else _START_S
        due = Due([], [], [], wait_s)
        for ref, start in list(self._starts.items()):
            waited_s = now_s - start.since_s
            others = start.others or (serving > 0 and waited_s >= others_s)
            named = start.named or waited_s >= _START_S
            if others and not start.others:
                due.others.append(start)
            if named and not start.named:
                due.waiting.append(start)
            if named and now_s - max(start.since_s, self._served_s or 0) >= wait_s:
                due.failed.append(start)
                del self._starts[ref]
            else:
                self._starts[ref] = replace(start, others=others, named=named)
        return due
