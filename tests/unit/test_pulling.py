"""What a pull does with a folder, with files from a real server."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from presswork_client import ClientError, pulling
from presswork_client.pulling import JOURNAL, Pulled, Source
from presswork_client.transport import Transport

MUGS = Source("dataset_1", "mugs")


class Store(SimpleHTTPRequestHandler):
    """Sends the rest of a file, too: `Range: bytes=BEGIN-`."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if "Range" not in self.headers or not path.is_file():
            super().do_GET()
        elif rest := path.read_bytes()[int(self.headers["Range"].removeprefix("bytes=")[:-1]) :]:
            self.send_response(206)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest)
        else:
            self.send_error(416)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    served = tmp_path_factory.mktemp("served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Store, directory=str(served)))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def pull(address: tuple[Path, str], tmp_path: Path) -> Iterator[Callable[..., Pulled]]:
    """Pulls a version of these texts by path; a path that is `missing` cannot be read."""
    served, url = address
    transport = Transport(url, "key", 5.0, 0.0, None)

    def call(
        texts: dict[str, str], source: Source = MUGS, missing: str = "", folder: Path = tmp_path / "data",
        on_bytes: Any = None,
    ) -> Any:  # fmt: skip
        files = []
        for path, text in texts.items():
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            if path != missing:
                (served / sha256).write_text(text)
            split = path.partition("/")[2].partition("-")[0] or None
            files.append(
                {"path": path, "split": split, "bytes": len(text), "sha256": sha256, "images": 1,
                 "url": f"{url}/{sha256 if path != missing else 'none'}"}
            )  # fmt: skip
        return pulling.pull(transport, files, folder, source, 2, on_bytes)

    yield call
    transport.close()


def held(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL
    }


def test_a_folder_of_something_else_is_left_as_it_is(pull, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("ours")
    for source in (MUGS, Source("dataset_2", "mugs")):
        with pytest.raises(ClientError, match="holds something other than the dataset mugs; name another folder"):
            pull({"README.md": "theirs"}, source, folder=folder)
        assert (folder / "README.md").read_text() == "ours"
        (folder / JOURNAL).write_text('{"dataset": "dataset_1", "files": {}}')


def test_what_an_interrupted_pull_has_left_is_deleted_by_a_later_one(pull, tmp_path):
    pull({"data/train-0": "a", "data/val-0": "b", "manifest.json": "1"})
    with pytest.raises(ClientError):
        pull({"data/train-1": "c", "data/val-1": "d", "manifest.json": "2"}, missing="manifest.json")
    third = {"data/train-2": "e", "data/val-0": "b", "manifest.json": "3"}
    assert pull(third).deleted == 3
    assert held(tmp_path / "data") == third
    train = Source(MUGS.id, MUGS.name, "train")
    assert pull({"data/train-3": "f"}, train).deleted == 1
    assert held(tmp_path / "data") == {"data/train-3": "f", "data/val-0": "b", "manifest.json": "3"}


def test_the_part_of_another_version_s_file_is_not_continued(pull, tmp_path):
    pull({"README.md": "one"})
    for part in ("README.md.part", f"README.md.{'0' * 16}.part"):
        (tmp_path / "data" / part).write_text("old")
    pull({"README.md": "two"})
    assert (tmp_path / "data" / "README.md").read_text() == "two"
    assert not (tmp_path / "data" / f"README.md.{'0' * 16}.part").exists()


def test_a_folder_whose_journal_was_cut_off_is_still_the_dataset_s(pull, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{JOURNAL}.new").write_text('{"data')
    texts = {"data/train-0": "a", "manifest.json": "1"}
    pull(texts)
    assert held(tmp_path / "data") == texts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB. Skipped where it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs", place]
    made = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if made is None or made.returncode:
        words = made.stderr.strip() if made else "there is no `mount`"
        pytest.skip(f"A FULL DISK WAS NOT TRIED: a file system of 256 KiB needs root and CAP_SYS_ADMIN ({words})")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("full_at", ["journal", "first", "last"])
def test_a_disk_that_is_full_loses_nothing(pull, small_disk, full_at, monkeypatch):
    """Something else fills it after the pull has looked how much there is."""
    folder = small_disk / "data"
    texts = {f"data/train-{n}": f"{n}" * 40_000 for n in range(4)} | {
        "README.md": "card",
        "manifest.json": "{}" * 2_000,
    }
    filler = small_disk / "filler"

    def fill(_: int = 0) -> None:
        written = sum(1 for path in folder.rglob("train-*") if path.suffix != ".part")
        if filler.exists() or (full_at == "last" and written < 4):
            return
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
            file.write(bytes(100))

    with monkeypatch.context() as patched:
        if full_at == "journal":
            patched.setattr(pulling, "_check_space", lambda *_: fill())
        with pytest.raises(
            ClientError, match="is full; nothing is lost: free some space, and the same call"
        ) as refused:
            pull(texts, folder=folder, on_bytes=fill)
    assert refused.value.code == "disk_full" and not (folder / "manifest.json").exists()
    there = {path: text for path, text in held(folder).items() if not path.endswith(".part")}
    shards = sum(path.startswith("data/") for path in there)
    assert there.items() <= texts.items() and shards in {"journal": (0,), "first": (0, 1, 2, 3), "last": (4,)}[full_at]
    filler.unlink()
    rest = pull(texts, folder=folder)
    assert held(folder) == texts and rest.fetched == len(texts) - len(there)


def test_files_are_looked_up_by_path_and_not_compared_with_each_other(tmp_path, monkeypatch):
    """Else 10,000 shards take some 20 seconds before the first is fetched."""
    monkeypatch.setattr(pulling, "_fetch_all", lambda *_: None)
    monkeypatch.setattr(pulling, "_is_there", lambda *_: False)
    compared: list[int] = []

    class File(dict[str, Any]):
        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return super().__eq__(other)

        __hash__ = None  # type: ignore[assignment]

    files: Any = [File(path=f"data/{n}", split="data", bytes=0, sha256="0" * 64, images=1, url="") for n in range(50)]
    pulling.pull(None, files, tmp_path, MUGS, 1, lambda _: None)  # type: ignore[arg-type]
    assert not compared


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "..\\x", "C:x", "a\\..\\..\\x", ""])
def test_no_path_leads_out_of_the_folder_on_any_system(path):
    with pytest.raises(ClientError, match="outside the folder"):
        pulling._inside(path)
