"""Schemathesis on the document that the API publishes: all its checks of every operation."""

from pathlib import Path

import pytest

from tests.explorer import explore
from tests.web import Api


@pytest.mark.timeout(300)
def test_no_request_that_the_document_allows_or_forbids_is_answered_out_of_line(api: Api, tmp_path: Path) -> None:
    """`make chaos` sends all requests that the schemas suggest, and draws more."""
    assert explore(api, tmp_path, examples=3, suggested=False) > 800
    assert api.http.get("/readyz").status_code == 200
