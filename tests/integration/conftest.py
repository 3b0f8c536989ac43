"""The HTTP API for tests that talk to it, and the worker's loop for those that render."""

import dataclasses
from collections.abc import Iterator

import pytest

from services.core.settings import Settings
from services.core.storage import S3Store
from tests.presses import PressMaker, press_maker
from tests.web import Api, open_api


@pytest.fixture
def api(settings: Settings, store: S3Store) -> Iterator[Api]:
    with open_api(settings) as running:
        yield running


@pytest.fixture
def fast(settings: Settings) -> Settings:
    """Faults on, small leases, and small pictures are asked for."""
    return dataclasses.replace(settings, simulated_faults=True, lease_seconds=3.0)


@pytest.fixture
def make_press(database_url: str, fast: Settings, store: S3Store) -> Iterator[PressMaker]:
    with press_maker(database_url, fast, store) as make:
        yield make
