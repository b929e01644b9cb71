"""Which writers there are, for which nodes, and which nodes still want some."""

from __future__ import annotations

from collections.abc import Iterable

from ray_sink.runtime.messages import WriterInfo


class Roster:
    """The coordinator's list of writers. The driver creates the actors and says which it has."""

    def __init__(self) -> None:
        self._writers: dict[str, WriterInfo] = {}
        self._wanted: set[str] = set()

    def update(self, writers: Iterable[WriterInfo]) -> None:
        """Take in all writers that the driver knows of."""
        self._writers = {writer.name: writer for writer in writers}

    def want(self, node: str) -> None:
        """A producer appeared on `node`."""
        self._wanted.add(node)

    def missing(self) -> list[str]:
        """Nodes with producers and without writers."""
        served = {writer.node for writer in self._writers.values()}
        return sorted(self._wanted - served)

    def serving(self, node: str) -> list[WriterInfo]:
        """Writers for producers on `node`; empty until the driver has created them.

        Raises:
            Exception: why there are none and will be none.
        """
        found = [writer for writer in self._writers.values() if writer.node == node]
        able = [writer for writer in found if writer.actor is not None]
        if found and not able:
            raise found[0].error or RuntimeError(f"no writer for node {node}")
        return able
