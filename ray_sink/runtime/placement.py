"""Where the actors go."""

from __future__ import annotations

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
        head: the head's id, or None where it is gone.
        store_bytes: size of each node's object store.
    """

    alive: frozenset[str]
    head: str | None
    store_bytes: dict[str, int]


def nodes() -> Nodes:
    """Look at the cluster."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    heads = [node["NodeID"] for node in alive if _HEAD in node["Resources"]]
    return Nodes(
        frozenset(node["NodeID"] for node in alive),
        heads[0] if heads else None,
        {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in alive},
    )


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


def for_writer(node: str, options: WriterOptions, cluster: Nodes) -> dict[str, Any]:
    """Actor options of a writer that serves producers on `node`.

    With resources or labels of their own, writers go where those are; else beside the producers. The head gets none
    while there are other nodes.
    """
    wanted: dict[str, Any] = {"num_cpus": options.num_cpus, "memory": options.memory_bytes}
    if options.resources or options.label_selector:
        return {**wanted, "resources": dict(options.resources), "label_selector": dict(options.label_selector)}
    if node in cluster.alive and (node != cluster.head or cluster.alive == {cluster.head}):
        return {**on_node(node), **wanted}
    return {**off_the_head(cluster), **wanted}


def spawn(shell: type, *args: object, **options: Any) -> Any:
    """Create an actor around `shell`; its handle, whose methods Ray's own types do not know."""
    return ray.remote(shell).options(**options).remote(*args)
