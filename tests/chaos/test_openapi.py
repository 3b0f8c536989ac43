"""Schemathesis on the document that the API publishes: all requests that the schemas suggest, and many drawn ones."""

from pathlib import Path

import pytest

from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests.explorer import explore
from tests.web import open_api


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_no_request_of_many_that_are_drawn_is_answered_out_of_line(
    settings: Settings, store: S3Store, tmp_path: Path
) -> None:
    with open_api(settings) as api:
        assert explore(api, tmp_path, examples=25, suggested=True) > 10_000
        assert api.http.get("/readyz").status_code == 200
