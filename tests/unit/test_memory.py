"""Where the servers of a test run keep their data."""

import fcntl
import shutil
from pathlib import Path

import pytest

from tests import memory


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "MEMORY", tmp_path)
    return tmp_path


def test_a_folder_is_in_memory_and_gone_afterwards(place: Path) -> None:
    with memory.folder("run-") as folder:
        assert folder.parent == place
    assert list(place.iterdir()) == []


def test_what_a_killed_run_has_left_is_deleted_and_what_a_living_one_has_is_not(place: Path) -> None:
    for name in ("run-killed", "run-living", "another-killed"):
        (place / name).mkdir()
        (place / name / "lock").touch()
    with (place / "run-living" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with memory.folder("run-") as one, memory.folder("run-") as other:
            assert {path.name for path in place.iterdir()} == {"run-living", "another-killed", one.name, other.name}


def test_without_room_in_memory_it_lies_with_other_temporary_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place)
    for room in (usage._replace(free=64 << 20), None):
        if room is None:
            monkeypatch.setattr(memory, "MEMORY", place / "none")
        else:
            monkeypatch.setattr(shutil, "disk_usage", lambda _path, room=room: room)
        with memory.folder("run-") as folder:
            assert folder.is_dir()
            assert folder.parent != place
