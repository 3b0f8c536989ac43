"""Which images a stream of shards reads, and how it bears a server that is busy."""

import hashlib
import io
import json
import pickle
import tarfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from presswork_client import ClientError, streams
from presswork_client.streams import ImageStream, StreamedShard


def shard(number: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind, data in (("png", b"picture"), ("json", json.dumps({"prompt": f"mug {number}"}).encode())):
            entry = tarfile.TarInfo(f"{number}.{kind}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


class Busy(BaseHTTPRequestHandler):
    """Refuses a first time, sends a damaged shard a second, and the whole one then. /lost is never there."""

    asked: dict[str, int] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        count = self.asked[self.path] = self.asked.get(self.path, 0) + 1
        content = shard(int(self.path[1:])) if self.path != "/lost" else b""
        self.send_response(404 if self.path == "/lost" else 429 if count == 1 else 200)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(bytes(len(content)) if count == 2 else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Busy.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def stream(url: str = "http://nowhere", rank: int | None = None, ranks: int | None = None) -> ImageStream:
    shards = tuple(StreamedShard(f"{url}/{n}", 1, hashlib.sha256(shard(n)).hexdigest()) for n in range(4))
    return ImageStream(shards, "webdataset", 0, 0, rank, ranks)


def test_a_shard_is_asked_for_again_after_a_pause_until_it_is_whole(url, monkeypatch):
    pauses: list[float] = []
    # The module's own name: threads that other tests have left sleep, too.
    monkeypatch.setattr(streams, "time", SimpleNamespace(**vars(time) | {"sleep": pauses.append}))
    assert [image.prompt for image in stream(url, 1, 4)] == ["mug 1"]
    assert (Busy.asked, pauses) == ({"/1": 3}, [7.0, 1.0])
    lost = ImageStream((StreamedShard(f"{url}/lost", 1, ""),), "webdataset", 0, 0, None, None)
    with pytest.raises(ClientError, match="Is the dataset there"):
        list(lost)
    assert Busy.asked["/lost"] == 1


def test_a_worker_that_is_started_anew_reads_for_the_rank_that_started_it(monkeypatch):
    """Else each rank's workers read every image."""
    pytest.importorskip("torch")
    alone = pickle.dumps(stream().torch())
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    sent = pickle.dumps(stream().torch())
    told = pickle.dumps(stream(rank=3, ranks=4).torch())
    monkeypatch.setenv("RANK", "0")
    readers = [pickle.loads(one).__iter__.__closure__[0].cell_contents._reader() for one in (sent, told, alone)]
    assert readers == [(2, 4), (3, 4), (0, 4)]  # one that was sent before there was a rank takes its receiver's


def test_a_process_group_says_the_rank_whatever_the_environment_says(tmp_path, monkeypatch):
    """A launcher other than torchrun sets no RANK: the group itself knows."""
    distributed = pytest.importorskip("torch.distributed")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert stream()._reader() == (0, 1)
        assert len(list(stream().reading()._shards)) == 4
    finally:
        distributed.destroy_process_group()
    assert stream()._reader() == (2, 4)


@pytest.mark.parametrize(("rank", "ranks"), [(1, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_a_rank_stands_with_the_number_of_ranks(rank, ranks):
    with pytest.raises(ClientError, match="Give rank and world_size together"):
        stream(rank=rank, ranks=ranks)
