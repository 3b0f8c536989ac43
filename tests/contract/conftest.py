"""What the contract suites of the Cloud AI 100 share: a tiny model, and the stand-in in the SDK's place."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from services.core.settings import Settings
from tests.ai100 import SERVERS, Open
from worker.model import make
from worker.pipelines import cloud_ai100
from worker.pipelines.ai100_stand_in import machine
from worker.pipelines.ai100_stand_in.install import install
from worker.pipelines.cloud_ai100 import Ai100Pipeline


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and the stand-in in the SDK's place."""
    folder = tmp_path_factory.mktemp("ai100")
    make.make(folder / "tiny", "tiny")
    install(folder / "sdk")
    return folder


@pytest.fixture
def settings_for(home: Path, on_stand_in: Mapping[str, str]) -> Callable[..., Settings]:
    def read(**more: str) -> Settings:
        chosen = {"PRESSWORK_PIPELINE": "ai100", "PRESSWORK_MODEL_DIR": str(home / "tiny")}
        return Settings.read(
            SERVERS | chosen | {"PRESSWORK_BATCH_SIZES": "16,4,1", "PRESSWORK_SIZES": "64x64"} | on_stand_in | more
        )

    return read


@pytest.fixture
def opened(settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a pipeline on a stand-in that has just been started, with AI100_STAND_IN_ variables in small letters."""
    pipelines: list[Ai100Pipeline] = []
    machine.reset()

    def make_one(settings: dict[str, str] | None = None, **stand_in: str) -> Ai100Pipeline:
        for name, value in stand_in.items():
            monkeypatch.setenv(f"AI100_STAND_IN_{name.upper()}", value)
        pipelines.append(cloud_ai100.open_pipeline(settings_for(**(settings or {}))))
        return pipelines[-1]

    yield make_one
    for pipeline in pipelines:
        pipeline.close()
