"""What tenants have cost: written by one thread and paid by another, nothing is lost and nothing is counted twice."""

import sys
import threading
from collections.abc import Iterator

import pytest

from worker.charges import Charges


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads change places as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty")
def test_what_is_paid_while_more_is_added_is_paid_once() -> None:
    charges, paid, over = Charges(), {1: 0.0, 2: 0.0}, threading.Event()

    def pay() -> None:
        while not over.is_set():
            for tenant_id, cost in charges.unpaid().items():
                paid[tenant_id] += cost
                charges.paid(tenant_id, cost)

    paying = threading.Thread(target=pay)
    paying.start()
    for number in range(200_000):
        charges.add(1 + number % 2, 1.0)
    over.set()
    paying.join()
    left = charges.unpaid()
    assert {tenant_id: paid[tenant_id] + left.get(tenant_id, 0.0) for tenant_id in paid} == {1: 100_000, 2: 100_000}


def test_what_could_not_be_recorded_stays_to_be_paid() -> None:
    charges = Charges()
    charges.add(1, 2.0)
    assert charges.unpaid() == {1: 2.0}
    charges.add(1, 1.0)
    charges.paid(1, 2.0)
    assert charges.unpaid() == {1: 1.0}
    charges.paid(1, 1.0)
    assert charges.unpaid() == {}
