"""Budgets of bytes, leased to those who are about to use them. Whoever waits is the caller's business."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ray_sink.config import MiB

LEASE_S: Final = 30.0
"""A producer silent for so long is gone, and its objects with it: Ray frees what a dead owner had put."""
_LEASE_BYTES: Final = 16 * MiB
"""What a producer of small outputs gets, so that it seldom has to ask."""


@dataclass(slots=True)
class Budget:
    """A number of bytes that holders share.

    A holder that needs more than the whole budget gets what it needs when nobody else holds anything: an oversized item
    goes through alone instead of never.

    Attributes:
        limit_bytes: the budget.
        leases: bytes by holder.
    """

    limit_bytes: int
    leases: dict[str, int] = field(default_factory=dict)

    @property
    def free_bytes(self) -> int:
        """What is left; negative while an oversized item is under way."""
        return self.limit_bytes - sum(self.leases.values())

    def lease(self, holder: str, need_bytes: int, *, want_bytes: int = 0) -> int:
        """Lease `need_bytes`, and up to `want_bytes` if that leaves half of the budget free.

        Returns:
            Bytes granted; 0 if there is no room now.
        """
        free = self.free_bytes
        alone = not any(held for name, held in self.leases.items() if name != holder)
        if need_bytes > free and not (alone and not self.leases.get(holder)):
            return 0
        granted = max(need_bytes, min(want_bytes, free - self.limit_bytes // 2))
        self.leases[holder] = self.leases.get(holder, 0) + granted
        return granted

    def set(self, holder: str, held_bytes: int) -> None:
        """What a holder says it holds; the truth after a restart."""
        if held_bytes:
            self.leases[holder] = held_bytes
        else:
            self.leases.pop(holder, None)


class Credits:
    """Room in each node's object store, leased to the producers there. Lives in memory only: they say it again.

    Args:
        limit_of: the budget of a node, in bytes.
        clock: seconds, monotonic.
    """

    def __init__(self, limit_of: Callable[[str], int], *, clock: Callable[[], float]) -> None:
        self._limit_of = limit_of
        self._clock = clock
        self._budgets: dict[str, Budget] = {}
        self._heard: dict[str, tuple[str, float]] = {}
        self._granted: dict[str, int] = {}
        self._starving: set[str] = set()

    def said(self, name: str, node: str, held_bytes: int, granted_bytes: int) -> None:
        """Note what a producer holds; what was granted after it spoke comes on top.

        Args:
            name: the producer.
            node: its node.
            held_bytes: what it holds.
            granted_bytes: all that it was ever granted, as far as it knew then.
        """
        total = self._granted[name] = max(self._granted.get(name, 0), granted_bytes)
        held = held_bytes + total - granted_bytes
        self._budget(node).set(name, held)
        self._heard[name] = (node, self._clock())
        if not held:
            self._heard.pop(name)

    def asked(self, name: str, node: str, held_bytes: int, granted_bytes: int) -> None:
        """As `said`, by a producer that asks for more: a grant that it does not know of was lost on the way."""
        self._granted[name] = granted_bytes  # it asks one thing at a time
        self.said(name, node, held_bytes, granted_bytes)

    def left(self, name: str, node: str) -> None:
        """A producer has said goodbye."""
        self.said(name, node, 0, self._granted.get(name, 0))

    def lease(self, name: str, node: str, need_bytes: int) -> int:
        """Bytes granted, at least `need_bytes`; 0 if there is no room now."""
        self._expire(node)
        granted = self._budget(node).lease(name, need_bytes, want_bytes=max(4 * need_bytes, _LEASE_BYTES))
        self._granted[name] = self._granted.get(name, 0) + granted
        return granted

    @contextmanager
    def starves(self, name: str) -> Iterator[None]:
        """A producer waits for room: others are asked to give up what they do not use."""
        self._starving.add(name)
        try:
            yield
        finally:
            self._starving.discard(name)

    @property
    def held_bytes(self) -> int:
        """Room that producers hold, on all nodes."""
        return sum(sum(budget.leases.values()) for budget in self._budgets.values())

    @property
    def anyone_starves(self) -> bool:
        """Whether a producer waits for room."""
        return bool(self._starving)

    def _budget(self, node: str) -> Budget:
        if node not in self._budgets:
            self._budgets[node] = Budget(self._limit_of(node))
        return self._budgets[node]

    def _expire(self, node: str) -> None:
        now = self._clock()
        for name, (where, heard) in list(self._heard.items()):
            if where == node and now - heard > LEASE_S:
                self._budget(node).set(name, 0)
                del self._heard[name]
