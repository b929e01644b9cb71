"""Which writers there are, for which nodes, and which nodes still want some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ray_sink.runtime.messages import RosterWish, WriterInfo


class Roster:
    """The coordinator's list of writers. The driver creates the actors and says which it has.

    Args:
        per_node: writers for each node with producers.
    """

    def __init__(self, per_node: int) -> None:
        self._per_node = per_node
        self._writers: dict[str, WriterInfo] = {}
        self._of: dict[str, list[WriterInfo]] = {}
        self._starting: Counter[str] = Counter()
        self._wanted: set[str] = set()
        self._failed: set[str] = set()
        self._draining: frozenset[str] = frozenset()

    def update(
        self,
        writers: Iterable[WriterInfo],
        starting: Mapping[str, int],
        draining: frozenset[str] = frozenset(),
        gone: frozenset[str] = frozenset(),
    ) -> None:
        """Take in all writers that the driver has.

        Args:
            writers: they; not those that were told to leave.
            starting: how many it is starting for each node.
            draining: nodes that drain. Producers there have what others have, and get a writer if nobody has one.
            gone: nodes that are not there any more. They get none, but if a producer there asks again.
        """
        self._wanted -= gone | (self._draining - draining)
        self._draining = draining
        self._writers = {writer.name: writer for writer in writers}
        self._starting = Counter(starting)
        self._failed &= self._writers.keys()
        self._look()

    def want(self, node: str) -> bool:
        """A producer appeared on `node`; whether that is news."""
        known = node in self._wanted
        self._wanted.add(node)
        return not known

    def fail(self, name: str) -> bool:
        """A producer found this writer dead; whether that is news."""
        if name not in self._writers or name in self._failed:
            return False
        self._failed.add(name)
        self._look()
        return True

    def _look(self) -> None:
        """Many ask who serves them, whenever something has changed."""
        self._of = {}
        for writer in self._living():
            self._of.setdefault(writer.node, []).append(writer)

    def wish(self) -> RosterWish:
        """What the driver should do."""
        # those that are awaited count among the starting
        alive = Counter(w.node for w in self._living() if not w.going and not _is_awaited(w))
        missing = {node: self._wanted_on(node, alive) - alive[node] - self._starting[node] for node in self._wanted}
        return RosterWish({node: count for node, count in missing.items() if count > 0}, tuple(sorted(self._failed)))

    def _wanted_on(self, node: str, alive: Counter[str]) -> int:
        if node not in self._draining:
            return self._per_node
        return 0 if alive.total() + self._starting.total() else 1

    def serving(self, node: str) -> list[WriterInfo]:
        """Writers for producers on `node`; empty until the driver has created one.

        Those of others where the node drains or its own are long in coming; those that go only where nobody else is.

        Raises:
            SinkError: why there is none and will be none.
        """
        found = self._of.get(node, [])
        if (node in self._draining or any(map(_is_awaited, found))) and not any(_stays(w) for w in found):
            found = [w for w in self._living() if w.actor is not None] or found
        able = [w for w in found if w.actor is not None]
        errors = [w.error for w in found if w.error is not None]
        if errors and not able:
            raise errors[0]
        return [w for w in able if _stays(w)] or able

    def _living(self) -> list[WriterInfo]:
        return [w for w in self._writers.values() if w.name not in self._failed]


def _stays(writer: WriterInfo) -> bool:
    return writer.actor is not None and not writer.going


def _is_awaited(writer: WriterInfo) -> bool:
    return writer.actor is None and writer.error is None
