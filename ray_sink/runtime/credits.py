"""Budgets of bytes, leased to those who are about to use them. Whoever waits is the caller's business."""

from __future__ import annotations

import itertools
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
        held_bytes: what all holders have together.
    """

    limit_bytes: int
    held_bytes: int = 0
    _leases: dict[str, int] = field(default_factory=dict)

    @property
    def free_bytes(self) -> int:
        """What is left; negative while an oversized item is under way."""
        return self.limit_bytes - self.held_bytes

    def held_by(self, holder: str) -> int:
        """What this one has."""
        return self._leases.get(holder, 0)

    def lease(self, holder: str, need_bytes: int, *, want_bytes: int = 0) -> int:
        """Lease `need_bytes`, and up to `want_bytes` if that leaves half of the budget free.

        Returns:
            Bytes granted; 0 if there is no room now.
        """
        free = self.free_bytes
        if need_bytes > free and self.held_bytes:
            return 0
        granted = max(need_bytes, min(want_bytes, free - self.limit_bytes // 2))
        self.set(holder, self.held_by(holder) + granted)
        return granted

    def set(self, holder: str, held_bytes: int) -> None:
        """What a holder says it holds; the truth after a restart."""
        self.held_bytes += held_bytes - self._leases.pop(holder, 0)
        if held_bytes:
            self._leases[holder] = held_bytes


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
        self._heard: dict[str, dict[str, float]] = {}
        self._held_bytes = 0
        self._granted: dict[str, int] = {}
        self._starving: set[str] = set()
        self._numbers = itertools.count(1)
        self._places: dict[str, int] = {}

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
        self._set(node, name, held)

    def asked(self, name: str, node: str, held_bytes: int, granted_bytes: int) -> None:
        """As `said`, by a producer that asks for more: a grant that it does not know of was lost on the way."""
        self._granted[name] = granted_bytes  # it asks one thing at a time
        self.said(name, node, held_bytes, granted_bytes)

    def place(self, name: str) -> int:
        """A producer's place in the line of those who ask, which it keeps until it is granted something."""
        if name not in self._places:
            self._places[name] = next(self._numbers)
        return self._places[name]

    def left(self, name: str, node: str) -> None:
        """A producer has said goodbye."""
        self._places.pop(name, None)
        self.said(name, node, 0, self._granted.get(name, 0))

    def lease(self, name: str, node: str, need_bytes: int) -> int:
        """Bytes granted, at least `need_bytes`; 0 if there is no room now."""
        self._expire(node)
        granted = self._budget(node).lease(name, need_bytes, want_bytes=max(4 * need_bytes, _LEASE_BYTES))
        if granted:
            self._places.pop(name, None)
            self._held_bytes += granted
            # it may be gone before it says that it has it
            self._heard.setdefault(node, {})[name] = self._clock()
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
        return self._held_bytes

    @property
    def anyone_starves(self) -> bool:
        """Whether a producer waits for room."""
        return bool(self._starving)

    def _budget(self, node: str) -> Budget:
        if node not in self._budgets:
            self._budgets[node] = Budget(self._limit_of(node))
        return self._budgets[node]

    def _set(self, node: str, name: str, held_bytes: int) -> None:
        budget, heard = self._budget(node), self._heard.setdefault(node, {})
        before_bytes = budget.held_bytes
        budget.set(name, held_bytes)
        self._held_bytes += budget.held_bytes - before_bytes
        if held_bytes:
            heard[name] = self._clock()
        else:
            heard.pop(name, None)

    def _expire(self, node: str) -> None:
        now = self._clock()
        for name, heard in list(self._heard.get(node, {}).items()):
            if now - heard > LEASE_S:
                self._set(node, name, 0)
