"""The HTTP API for tests that talk to it."""

from collections.abc import Iterator

import pytest

from services.core.settings import Settings
from services.core.storage import S3Store
from tests.web import Api, open_api


@pytest.fixture
def api(settings: Settings, store: S3Store) -> Iterator[Api]:
    with open_api(settings) as running:
        yield running
