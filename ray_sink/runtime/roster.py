"""Which writers there are, for which nodes, and which nodes still want some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ray_sink.errors import SinkError
from ray_sink.runtime.messages import RosterWish, WriterInfo


class Roster:
    """The coordinator's list of writers. The driver creates the actors and says which it has.

    Args:
        per_node: writers for each node with producers.
    """

    def __init__(self, per_node: int) -> None:
        self._per_node = per_node
        self._writers: dict[str, WriterInfo] = {}
        self._starting: Counter[str] = Counter()
        self._wanted: set[str] = set()
        self._failed: set[str] = set()

    def update(self, writers: Iterable[WriterInfo], starting: Mapping[str, int]) -> None:
        """Take in all writers that the driver has, and how many it is starting for each node."""
        self._writers = {writer.name: writer for writer in writers}
        self._starting = Counter(starting)
        self._failed &= self._writers.keys()

    def want(self, node: str) -> None:
        """A producer appeared on `node`."""
        self._wanted.add(node)

    def fail(self, name: str) -> None:
        """A producer found this writer dead."""
        if name in self._writers:
            self._failed.add(name)

    def wish(self) -> RosterWish:
        """What the driver should do."""
        alive = Counter(w.node for w in self._writers.values() if w.name not in self._failed)
        missing = {node: self._per_node - alive[node] - self._starting[node] for node in self._wanted}
        return RosterWish({node: count for node, count in missing.items() if count > 0}, tuple(sorted(self._failed)))

    def serving(self, node: str) -> list[WriterInfo]:
        """Writers for producers on `node`; empty until the driver has created one.

        Raises:
            SinkError: why there is none and will be none.
        """
        found = [w for w in self._writers.values() if w.node == node and w.name not in self._failed]
        able = [writer for writer in found if writer.error is None]
        if found and not able:
            raise found[0].error or SinkError(f"no writer for node {node}")
        return able
