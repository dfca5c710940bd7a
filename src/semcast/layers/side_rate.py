"""What side information costs that goes into packets of its own."""

from __future__ import annotations

from semcast.types import Budget


class SideRate:
    """How side information is sent: modulation and coding, and what it costs."""

    def __init__(self, budget: Budget, mcs: str | None) -> None:
        self.mcs, self._budget = mcs, budget
        few, many = (budget.uses_for_packets([size], mcs) for size in (100, 500))
        self.bits_per_use = 3200 / max(many - few, 1)

    def uses(self, size: int) -> int:
        """Channel uses of one packet of ``size`` bytes."""
        return self._budget.uses_for_packets([size], self.mcs)
