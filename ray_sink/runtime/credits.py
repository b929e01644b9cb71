"""Budgets of bytes, leased to those who are about to use them. Whoever waits is the caller's business."""

from __future__ import annotations

from dataclasses import dataclass, field


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
