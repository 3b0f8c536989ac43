"""Schemathesis on the document that the API publishes: all its checks, and all requests that the schemas suggest."""

from pathlib import Path

import pytest

from tests.explorer import explore
from tests.web import Api


@pytest.mark.timeout(300)  # every operation, each with all requests that its schema suggests and one that is drawn
def test_no_request_that_the_document_allows_or_forbids_is_answered_out_of_line(api: Api, tmp_path: Path) -> None:
    """`make chaos` draws more of each operation."""
    assert explore(api, tmp_path, examples=1) > 5_000
    assert api.http.get("/readyz").status_code == 200
