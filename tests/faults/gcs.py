"""A cluster's head as a cloud or an autoscaler talks to it, without joining."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from ray.exceptions import RaySystemError, RpcError

# none of these has types
_raylet: Any = import_module("ray._raylet")
_autoscaler: Any = import_module("ray.core.generated.autoscaler_pb2")
_gcs: Any = import_module("ray.core.generated.gcs_pb2")


def alive(address: str) -> dict[str, str]:
    """Ids of the nodes that Ray takes for alive, by address; empty while no head answers."""
    try:
        found = _raylet.GcsClient(address=address).get_all_node_info(timeout=5).values()
    except (RpcError, RaySystemError, RuntimeError):
        return {}
    living = _gcs.GcsNodeInfo.ALIVE
    return {info.node_manager_address: info.node_id.hex() for info in found if info.state == living}


def drain(address: str, node: str, deadline_s: float) -> None:
    """Announce that a node will go.

    Args:
        address: the cluster's.
        node: the node's id.
        deadline_s: in how many seconds.
    """
    reason = _autoscaler.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = time.time_ns() // 1_000_000 + int(deadline_s * 1000)
    accepted, message = _raylet.GcsClient(address=address).drain_node(node, reason, "a test", deadline_ms)
    assert accepted, message
