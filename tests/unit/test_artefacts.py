"""A compiled artefact is complete or made again, whatever happened to the disk or to the process that made it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.core.model.errors import SettingsError
from tests.waiting import until
from worker.model.artefacts import Artefacts

ROOT = Path(__file__).parents[2]
# A process that makes one file: it tells that it began, waits for leave, and tells that it made it.
MAKER = """
import os, signal, sys, time
from pathlib import Path
from worker.model.artefacts import Artefacts

cache, say = Path(sys.argv[1]), Path(sys.argv[2])

def make(into):
    (into / "graph").write_text("half")
    with (say / "made").open("a") as file:
        file.write("x")
    while not (say / "leave").exists():
        time.sleep(0.01)
    (into / "graph").write_text("whole")

(say / f"asks-{os.getpid()}").touch()
Artefacts(cache, "model", {"n": 1}).get("part", make)
"""


class Maker:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self, into: Path) -> None:
        self.times += 1
        (into / "graph").write_text("the graph")
        (into / "weights").write_text("the weights")


def opened(cache: Path, number: int = 1) -> Artefacts:
    return Artefacts(cache, "a model/of mine", {"n": number})


def start_maker(cache: Path, say: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(cache), str(say)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    )


def test_what_is_there_is_not_made_again(tmp_path: Path):
    make = Maker()
    folder = opened(tmp_path).get("part", make)
    assert opened(tmp_path).get("part", make) == folder
    assert make.times == 1
    assert (folder / "graph").read_text() == "the graph"
    assert not list(folder.glob(".draft-*"))


def test_whatever_decides_the_files_decides_the_folder(tmp_path: Path):
    make = Maker()
    assert opened(tmp_path, 1).get("part", make) != opened(tmp_path, 2).get("part", make)
    assert make.times == 2


@pytest.mark.parametrize(
    ("file", "text"), [("weights", "the wEights"), ("weights", "the"), ("part.json", "{"), ("part.json", "[]")]
)
def test_what_is_damaged_is_made_again(tmp_path: Path, file: str, text: str):
    make = Maker()
    folder = opened(tmp_path).get("part", make)
    (folder / file).write_text(text)
    opened(tmp_path).get("part", make)
    assert make.times == 2
    assert (folder / "weights").read_text() == "the weights"


def test_what_is_lost_is_made_again(tmp_path: Path):
    make = Maker()
    folder = opened(tmp_path).get("part", make)
    (folder / "graph").unlink()
    opened(tmp_path).get("part", make)
    assert make.times == 2


def test_what_failed_half_way_leaves_nothing(tmp_path: Path):
    def fail(into: Path) -> None:
        (into / "graph").write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        opened(tmp_path).get("part", fail)
    assert not list(opened(tmp_path).folder.glob("graph*"))


def test_who_is_killed_half_way_holds_nobody_up(tmp_path: Path):
    cache, say = tmp_path / "cache", tmp_path / "say"
    say.mkdir()
    with start_maker(cache, say) as killed:
        until((say / "made").exists)
        killed.kill()
    make = Maker()
    folder = Artefacts(cache, "model", {"n": 1}).get("part", make)
    assert make.times == 1
    assert (folder / "graph").read_text() == "the graph"
    assert not list(folder.glob(".draft-*"))


def test_of_two_who_want_the_same_one_makes_it(tmp_path: Path):
    cache, say = tmp_path / "cache", tmp_path / "say"
    say.mkdir()
    with start_maker(cache, say) as first, start_maker(cache, say) as second:
        until(lambda: (say / "made").exists() and len(list(say.glob("asks-*"))) == 2)
        (say / "leave").touch()
        assert [first.wait(90), second.wait(90)] == [0, 0]
    assert (say / "made").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="artefacts"):
        opened(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; make room, or set PRESSWORK_ARTEFACTS to a folder on another disk."),
        (errno.EACCES, "Permission denied; let this user write there, or set PRESSWORK_ARTEFACTS to a folder that can"),
        (errno.EROFS, "Read-only file system; let this user write there, or set PRESSWORK_ARTEFACTS to a folder that"),
    ],
)
def test_a_cache_that_takes_nothing_says_why_and_what_would_do(tmp_path: Path, number: int, words: str):
    def make(into: Path) -> None:
        raise OSError(number, os.strerror(number), str(into / "graph"))

    with pytest.raises(SettingsError, match="artefacts' folder.*" + words):
        Artefacts(tmp_path, "model", {"n": 1}).get("part", make)


def test_what_cannot_be_read_elsewhere_is_not_held_against_the_cache(tmp_path: Path):
    cache, missing = tmp_path / "cache", tmp_path / "model" / "weights"
    with pytest.raises(SettingsError, match=f"^{missing} cannot be used: No such file or directory.$"):
        Artefacts(cache, "model", {"n": 1}).get("part", lambda into: missing.read_bytes())
