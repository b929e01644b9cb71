"""One observer of the staging folder on each node of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError

from ray_sink.doctor.observers import ObserverError
from ray_sink.doctor.watcher import Sightings, Watch, watch
from ray_sink.runtime import placement
from ray_sink.runtime.actors import current_node
from ray_sink.runtime.cluster import joined


def _watch(asked: Watch) -> Sightings:
    seen = watch(asked)
    seen.node = current_node()
    return seen


class NodeObserver:
    """See `ray_sink.doctor.observers.Observer`.

    Args:
        root: the staging folder.
        node: the node's id.
        address: its address, by which people know it.
    """

    def __init__(self, root: Path, node: str, address: str) -> None:
        self.name = f"node {address} ({node[:8]})"
        self._root = root
        self._node = node
        self._ref: ray.ObjectRef[Sightings] | None = None

    def start(self, folder: str, name: str, token: str) -> None:
        """See `Observer.start`."""
        task = ray.remote(_watch).options(max_retries=0, **placement.on_node(self._node))
        self._ref = task.remote(Watch(str(self._root), folder, name, token))

    def ended(self) -> bool:
        """See `Observer.ended`."""
        return self._ref is None or bool(ray.wait([self._ref], timeout=0)[0])

    def sightings(self, timeout_s: float) -> Sightings:
        """See `Observer.sightings`."""
        assert self._ref is not None
        try:
            seen = ray.get(self._ref, timeout=timeout_s)
        except GetTimeoutError:
            raise ObserverError(f"no answer for {timeout_s:g} s") from None
        except (RayError, OSError) as error:
            raise ObserverError(str(error).strip().rpartition("\n")[2][:200] or type(error).__name__) from error
        if seen.node != self._node:
            raise ObserverError(f"Ray ran it on node {seen.node[:8]} instead")
        return seen

    def stop(self) -> None:
        """See `Observer.stop`."""
        if self._ref is not None:
            ray.cancel(self._ref, force=True)


@contextmanager
def on_every_node(address: str, root: Path) -> Iterator[Sequence[NodeObserver]]:
    """Observers on all living nodes of the cluster at `address`.

    Raises:
        ConfigError: there is no cluster.
    """
    with joined(address):
        yield [NodeObserver(root, node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
