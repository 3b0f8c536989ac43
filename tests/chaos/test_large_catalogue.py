"""The pages of a catalogue of 200,000 items: `dashboard/test_large_catalogue_page.py` tests the same with fewer."""

import pytest

from tests.dashboard.test_large_catalogue_page import alone, assert_bounded, large_catalogue, pages, searches
from tests.dashboard.test_large_job_page import assert_cheap
from tests.pages import House

__all__ = ["alone"]
ITEMS = 200_000


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_no_page_of_a_catalogue_of_200_000_items_reads_more_than_a_page(alone: House) -> None:
    report = large_catalogue(alone, ITEMS)
    for path in pages(report):
        assert_cheap(alone, path)
    for path in searches(report):
        assert_bounded(alone, path)
