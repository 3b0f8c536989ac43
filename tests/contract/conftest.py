"""What the contract tests of the Cloud AI 100 share: the stand-in in the SDK's place, and one cache of programs."""

import os
from collections.abc import Mapping

import pytest

from worker.pipelines.ai100_stand_in.install import install


@pytest.fixture(scope="session")
def on_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Settings. Test processes share the cache, which keeps them apart, since an export takes long."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    sdk = install(tmp_path_factory.mktemp("sdk"))
    return {"PRESSWORK_AI100_SDK": str(sdk), "PRESSWORK_ARTEFACTS": str(folder / "ai100-artefacts")}
