"""What a cloud or an autoscaler says before it takes a node away."""

from __future__ import annotations

import time

from ray._raylet import GcsClient  # type: ignore[attr-defined]  # has no stubs
from ray.core.generated import autoscaler_pb2


def drain(address: str, node: str, deadline_s: float) -> None:
    """Announce that a node will go in so many seconds.

    Args:
        address: the cluster's.
        node: the node's id.
        deadline_s: from now.
    """
    kinds = autoscaler_pb2.DrainNodeReason  # type: ignore[attr-defined]  # made at run time
    reason = kinds.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = time.time_ns() // 1_000_000 + int(deadline_s * 1000)
    accepted, message = GcsClient(address=address).drain_node(node, reason, "a test", deadline_ms)
    assert accepted, message
