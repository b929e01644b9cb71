"""Where the actors go."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from ray_sink.config import UploadOptions, WriterOptions

_NODE = "ray.io/node-id"
_HEAD = "node:__internal_head__"


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster as it is now.

    Attributes:
        alive: ids of living nodes.
        draining: ids of those among them that are about to go.
        head: the head's id, or None where it is gone.
        store_bytes: size of each node's object store.
    """

    alive: frozenset[str]
    draining: frozenset[str]
    head: str | None
    store_bytes: dict[str, int]

    @property
    def able(self) -> frozenset[str]:
        """Those that may get writers: none that drains, and not the head while there are others."""
        apart = frozenset() if self.head is None or self.alive == {self.head} else frozenset({self.head})
        return self.alive - self.draining - apart


def nodes() -> Nodes:
    """Look at the cluster."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    heads = [node["NodeID"] for node in alive if _HEAD in node["Resources"]]
    return Nodes(
        frozenset(node["NodeID"] for node in alive),
        draining(),
        heads[0] if heads else None,
        {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in alive},
    )


def draining() -> frozenset[str]:
    """Ids of the nodes that are about to go: by a spot notice, a scale-down, a SIGTERM to ``ray start --block``."""
    return frozenset(_deadlines_ms())


def notice_s(node: str) -> float:
    """For how long a node that drains is still there, by this machine's clock; infinity where nobody has said."""
    deadline_ms = _deadlines_ms().get(node, 0)
    now_s = time.time()  # noqa: TID251 - Ray tells the time of day; a wrong one makes a handover shorter, or 30 s
    return deadline_ms / 1000 - now_s if deadline_ms else math.inf


def _deadlines_ms() -> dict[str, int]:
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return found


def on_node(node: str) -> dict[str, Any]:
    """Actor options that pin to one node."""
    return {"num_cpus": 0, "label_selector": {_NODE: node}}


def off_the_head(cluster: Nodes) -> dict[str, Any]:
    """Actor options that keep away from the head, unless it is alone."""
    if cluster.head is None or cluster.alive == {cluster.head}:
        return {"num_cpus": 0}
    return {"num_cpus": 0, "label_selector": {_NODE: f"!{cluster.head}"}}


def for_uploader(options: UploadOptions, cluster: Nodes) -> dict[str, Any]:
    """Actor options of an uploader: where its labels are, else anywhere but on the head."""
    if options.label_selector:
        return {"num_cpus": 0, "label_selector": dict(options.label_selector)}
    return off_the_head(cluster)


def node_for_writer(node: str, options: WriterOptions, cluster: Nodes, writers: Counter[str]) -> str | None:
    """The node for a writer that serves producers on `node`; None where that is left to Ray.

    With resources or labels of their own, writers go where Ray finds those. Else beside the producers, and where
    that cannot be, on the node that has the fewest. Nodes that drain get none, and the head while there are others.

    Args:
        node: id of the producers' node.
        options: what a writer needs.
        cluster: as it is now.
        writers: how many there are on each node.
    """
    if options.resources or options.label_selector:
        return None
    if node in cluster.able:
        return node
    return min(cluster.able, key=lambda one: (writers[one], one), default=None)


def for_writer(node: str | None, options: WriterOptions, cluster: Nodes) -> dict[str, Any]:
    """Actor options of a writer on `node`, or with None where Ray finds a place for it."""
    wanted: dict[str, Any] = {"num_cpus": options.num_cpus, "memory": options.memory_bytes}
    if options.resources or options.label_selector:
        return {**wanted, "resources": dict(options.resources), "label_selector": dict(options.label_selector)}
    if node is not None:
        return {**on_node(node), **wanted}
    return {**off_the_head(cluster), **wanted}


def spawn(shell: type, *args: object, groups: Mapping[str, int] | None = None, **options: Any) -> Any:
    """Create an actor around `shell`; its handle, whose methods Ray's own types do not know.

    Args:
        shell: its class.
        args: of its constructor.
        groups: concurrency groups besides the default one, with the number of calls at a time; Ray takes them from the
            class only.
        options: its other options.
    """
    remote: Any = ray.remote  # typed as if classes took no concurrency groups
    made = remote(concurrency_groups=dict(groups))(shell) if groups else remote(shell)
    return made.options(**options).remote(*args)
