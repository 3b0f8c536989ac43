"""The images of a dataset's version one by one, read from its shards where they are stored.

Shards are divided among ranks and, within a rank, among the workers of a DataLoader. So together they read each image
once, whatever reads how fast.
"""

import io
import json
import os
import random
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import httpx

from presswork_client.transport import ClientError

_PICTURES = ("png", "jpg", "webp")
_TRIES = 5


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """One image: the bytes of its file, and its record."""

    key: str
    data: bytes
    record: dict[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.record["prompt"])

    @property
    def metadata(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.record["metadata"]))


class ImageStream:
    """An iterable that can be read again and again. It can be sent to other processes: it holds signed addresses and
    no connection. `epoch` changes the order of a shuffled one."""

    def __init__(
        self,
        shards: tuple[tuple[str, int], ...],
        form: str,
        shuffle: int,
        seed: int,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self.shards, self.epoch = shards, 0
        self._form, self._shuffle, self._seed = form, shuffle, seed
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """The images of all ranks together."""
        return sum(images for _, images in self.shards)

    def __iter__(self) -> Iterator[DatasetImage]:
        order = random.Random(f"{self._seed}/{self.epoch}")  # the same on every rank
        shards = list(self.shards)
        if self._shuffle:
            order.shuffle(shards)
        place, of = self._reader()
        images = (image for url, _ in shards[place::of] for image in _images(url, self._form))
        return _mixed(images, self._shuffle, random.Random(f"{self._seed}/{self.epoch}/{place}"))

    def torch(self) -> Any:
        """The stream as an IterableDataset, for a DataLoader with any number of workers."""
        from torch.utils.data import IterableDataset

        stream = self

        class Images(IterableDataset):  # type: ignore[misc, type-arg, unused-ignore]
            def __iter__(self) -> Iterator[DatasetImage]:
                return iter(stream)

        return Images()

    def _reader(self) -> tuple[int, int]:
        """Which of how many readers this is: over all ranks, and the workers of each."""
        rank, ranks = self._rank, self._world_size
        if rank is None or ranks is None:
            rank, ranks = _distributed()
        worker, workers = _worker()
        return rank * workers + worker, ranks * workers


def _distributed() -> tuple[int, int]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _worker() -> tuple[int, int]:
    torch = sys.modules.get("torch.utils.data")
    found = None if torch is None else torch.get_worker_info()
    return (0, 1) if found is None else (found.id, found.num_workers)


def _mixed(images: Iterator[DatasetImage], among: int, order: random.Random) -> Iterator[DatasetImage]:
    held: list[DatasetImage] = []
    for image in images:
        if len(held) < among:
            held.append(image)
            continue
        if not held:
            yield image
            continue
        place = order.randrange(len(held))
        yield held[place]
        held[place] = image
    order.shuffle(held)
    yield from held


def _images(url: str, form: str) -> Iterator[DatasetImage]:
    with _shard(url) as file:
        yield from _of_tar(file) if form == "webdataset" else _of_parquet(file)


def _shard(url: str) -> IO[bytes]:
    """A shard as a file that has no name. A connection that breaks is made again, from where it broke."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  its reader closes it
    for attempt in range(_TRIES):
        have = file.tell()
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=60.0) as answer:
                if answer.status_code == 416:
                    break
                if answer.status_code >= 500:
                    raise httpx.ReadError(f"{answer.url.host} answered {answer.status_code}")
                if answer.status_code >= 400:
                    message = f"A shard cannot be read: the server answered {answer.status_code}. Is the dataset there?"
                    raise ClientError(answer.status_code, "no_shard", message)
                if answer.status_code != 206:
                    file.seek(0)
                for data in answer.iter_bytes():
                    file.write(data)
            break
        except httpx.TransportError as error:
            if attempt == _TRIES - 1:
                raise ClientError(0, "unreachable", f"A shard cannot be read: {error}") from None
    file.seek(0)
    return file


def _of_tar(file: IO[bytes]) -> Iterator[DatasetImage]:
    key, picture, record = "", b"", b""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            name, _, kind = entry.name.partition(".")
            if name != key:
                if key:
                    yield DatasetImage(key, picture, json.loads(record))
                key, picture, record = name, b"", b""
            content = cast("IO[bytes]", tar.extractfile(entry)).read()
            if kind in _PICTURES:
                picture = content
            elif kind == "json":
                record = content
            tar.members.clear()  # type: ignore[attr-defined, unused-ignore]  # else it remembers every entry
    if key:
        yield DatasetImage(key, picture, json.loads(record))


def _of_parquet(file: IO[bytes]) -> Iterator[DatasetImage]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ClientError(0, "missing_extra", "Parquet shards are read with pyarrow: pip install pyarrow.") from None
    table = parquet.ParquetFile(io.BytesIO(file.read()))
    for batch in table.iter_batches(100):
        for row in batch.to_pylist():
            image = row.pop("image")
            yield DatasetImage(f"{row['job_id']}-{row['index']:09d}", image["bytes"], row)
