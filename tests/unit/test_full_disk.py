"""When the embedded store is ended because of a full disk, and when it is not."""

import os
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from services.local.child import Child
from services.local.servers import full_disk
from services.local.servers.full_disk import FullDisk, has_room
from services.local.supervisor import Supervised
from tests.storm.site import small_disk, unmountable

REFUSED = b'persisting /buckets/b/9/x : write data/filerldb2/07/000001.log: no space left on device", falling back\n'
NAMED = b'NewVolumeId error: strconv.ParseUint: parsing "no space left on device": invalid syntax\n'
mounts = pytest.mark.skipif(bool(unmountable()), reason=unmountable())


class Store:
    """A process with a log, and how its store answers; a second of the clock is one look."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.status, self.now, self.puts = folder, 500, 0.0, 0
        self.logs_refusals = True
        self.children: list[Child] = []
        self.watch = FullDisk(folder, self.put, lambda: self.now, lambda work: work())
        self.start()

    def start(self) -> None:
        argv, log = ["/bin/sh", "-c", "sleep 60"], self.folder / "log"
        self.children.append(Child(argv, env={"PATH": os.environ["PATH"]}, log=log))

    def put(self, number: int) -> int:
        self.puts += 1
        if self.status == 500 and self.logs_refusals:
            self.say(REFUSED)
        return self.status

    def say(self, line: bytes) -> None:
        with self.children[-1].log.open("ab") as log:
            log.write(line)

    def ends_within(self, seconds: int) -> list[float]:
        """When it was ended, each time followed by a start."""
        ends = []
        for _ in range(seconds):
            self.now += 1
            if self.watch.must_end(self.children[-1]):
                ends.append(self.now)
                self.children[-1].kill()
                self.start()
        return ends


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    for child in store.children:
        child.kill()


def test_a_store_that_stays_refused_is_ended_less_and_less_often(store: Store) -> None:
    store.say(REFUSED)
    ends = store.ends_within(4_000)
    pauses = [later - earlier for earlier, later in pairwise(ends)]
    assert ends[0] <= 10
    wanted = [60, 120, 240, 480, 600, 600, 600, 600]
    assert all(least <= pause <= least + 10 for least, pause in zip(wanted, pauses, strict=False)), pauses
    assert len(pauses) >= 6
    store.watch._ends = 2_000  # after two weeks
    assert len(store.ends_within(1_300)) == 2


def test_after_a_good_write_the_next_end_comes_a_minute_after_the_last(store: Store) -> None:
    store.say(REFUSED)
    _, second = store.ends_within(100)
    store.status = 200
    assert store.ends_within(20) == []
    store.status = 500
    store.say(REFUSED)
    third = store.ends_within(100)[0]
    assert 60 <= third - second <= 70


@pytest.mark.parametrize(
    ("line", "status", "puts"),
    [(NAMED, 500, False), (REFUSED, 200, True), (REFUSED, 0, True), (REFUSED, 403, True)],
    ids=["text of a request", "writes succeed", "no answer", "no permission"],
)
def test_what_is_not_refused_is_not_ended(store: Store, line: bytes, status: int, puts: bool) -> None:
    store.status = status
    store.say(line)
    assert store.ends_within(100) == []
    assert bool(store.puts) == puts


def test_without_room_nothing_is_written_and_nothing_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "ROOM_BYTES", 1 << 60)
    store.say(REFUSED)
    assert store.ends_within(100) == []
    assert store.puts == 0
    monkeypatch.undo()
    assert len(store.ends_within(10)) == 1


def test_a_started_store_is_ended_for_what_its_own_log_says_only(store: Store) -> None:
    """While it starts, it refuses for other reasons."""
    store.say(REFUSED)
    assert store.ends_within(3)
    store.logs_refusals = False
    assert store.ends_within(1_000) == []


def test_a_look_does_not_wait_for_a_store_that_hangs(tmp_path: Path, store: Store) -> None:
    answers = threading.Event()
    store.watch = FullDisk(tmp_path, lambda number: 0 if answers.wait(60) else 500, lambda: store.now)
    store.say(REFUSED)
    before = threading.active_count()
    assert store.ends_within(100) == []
    assert threading.active_count() <= before + 1
    answers.set()


def test_a_check_that_cannot_begin_is_tried_again(store: Store) -> None:
    def refuses(work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    store.watch._run = refuses
    store.say(REFUSED)
    assert store.ends_within(20) == []
    store.watch._run = lambda work: work()
    assert len(store.ends_within(10)) == 1


@mounts
def test_room_is_measured_where_the_data_lies_in_bytes_and_in_files(tmp_path: Path) -> None:
    assert has_room(tmp_path)
    assert not has_room(tmp_path / "gone")
    with small_disk(tmp_path / "small", 32 << 20) as disk:
        (tmp_path / "linked").symlink_to(disk)
        assert not has_room(tmp_path / "linked")
    with small_disk(tmp_path / "files", 256 << 20, files=2_000) as disk:
        assert has_room(disk)
        assert list(disk.iterdir()) == []
        for number in range(1_500):
            (disk / str(number)).touch()
        assert not has_room(disk)


@mounts
def test_a_disk_that_seems_to_have_room_and_takes_no_file_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a quota: the numbers of the disk are enough, and a file of 1 MiB is refused."""
    monkeypatch.setattr(full_disk, "ROOM_BYTES", 1 << 18)
    with small_disk(tmp_path / "small", 1 << 19) as disk:
        assert not has_room(disk)
        assert list(disk.iterdir()) == []
        monkeypatch.setattr(full_disk, "ROOM_FILE_BYTES", 1 << 16)
        assert has_room(disk)


def test_a_process_that_cannot_be_examined_goes_on(store: Store) -> None:
    def fails() -> str:
        raise OSError("gone")

    kept = Supervised("store", list, store.children[-1], fails)
    assert kept.end_if_stuck() == ""
    assert not kept.died()


def test_a_log_that_was_deleted_is_told_and_ends_nothing(store: Store) -> None:
    child = store.children[-1]
    child.log.unlink()
    assert child.last_error() == "its log cannot be read (No such file or directory)"
