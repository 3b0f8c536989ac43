"""What tenants' images have cost and the database does not know yet: written by the thread that claims, paid by
another."""

import threading


class Charges:
    """Any thread may use it. Costs are in units of `batching.cost`."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._unpaid: dict[int, float] = {}

    def add(self, tenant_id: int, cost: float) -> None:
        with self._guard:
            self._unpaid[tenant_id] = self._unpaid.get(tenant_id, 0.0) + cost

    def unpaid(self) -> dict[int, float]:
        """A copy of what is not paid, by tenant."""
        with self._guard:
            return dict(self._unpaid)

    def paid(self, tenant_id: int, cost: float) -> None:
        """So much of what `unpaid` said is committed. What was added since stays."""
        with self._guard:
            left = self._unpaid.pop(tenant_id) - cost
            if left > 0:
                self._unpaid[tenant_id] = left
