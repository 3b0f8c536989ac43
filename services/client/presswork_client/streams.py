"""The images of a dataset's version one by one, read from its shards where they are stored.

Shards are divided among ranks and, within a rank, among the workers of a DataLoader. So together they read each image
once, whatever reads how fast.
"""

import hashlib
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast

import httpx

from presswork_client.loading import ImageLoader, of_stream
from presswork_client.reading import Reading
from presswork_client.transport import ClientError, retry_after

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


class StreamedShard(NamedTuple):
    url: str
    images: int
    sha256: str


class ImageStream:
    """An iterable that can be read again and again. It can be sent to other processes: it holds signed addresses and
    no connection. `epoch` changes the order of a shuffled one."""

    def __init__(
        self,
        shards: tuple[StreamedShard, ...],
        form: str,
        shuffle: int,
        seed: int,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        if (rank is None) != (world_size is None) or not 0 <= (rank or 0) < (1 if world_size is None else world_size):
            message = "Give rank and world_size together, or neither: a rank is from 0 to world_size - 1."
            raise ClientError(0, "invalid_value", message)
        self.shards, self.epoch = shards, 0
        self._form, self._shuffle, self._seed = form, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self._now: Reading[StreamedShard, DatasetImage] | None = None
        self._state: dict[str, Any] | None = None
        self._sent = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_now": None}  # an iteration stays in its process

    def __len__(self) -> int:
        """The images of all ranks together."""
        return sum(shard.images for shard in self.shards)

    def __iter__(self) -> Iterator[DatasetImage]:
        """The images of the epoch for this reader, from the first one on, or once from where a state was taken."""
        self._now = self.reading()
        if self._state is not None:
            self._now.load_state_dict(self._state)
            self._state = None
        return self._now

    def state_dict(self) -> dict[str, Any]:
        """How far the last iteration of this process is: JSON. With a DataLoader, take that of `loader`. Each rank
        saves its own. Raises ClientError."""
        if self._sent:
            message = "The workers of the DataLoader know how far they are: use `loader`, which has a state_dict."
            raise ClientError(0, "no_state", message)
        return (self._now or self.reading()).state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration gives the rest of the epoch, whose number the stream takes. Raises ClientError if the
        state is of another version, split, seed, rank, or number of readers."""
        if isinstance(state.get("epoch"), int):
            self.epoch = state["epoch"]
        self.reading().load_state_dict(state)
        self._state = state

    def loader(
        self,
        batch_size: int | None = None,
        *,
        num_workers: int = 0,
        collate: Callable[[Any], Any] | None = None,
        **more: Any,
    ) -> ImageLoader:
        """A DataLoader that goes on in mid-epoch: it has `state_dict` and `load_state_dict`.

        It gives lists of `batch_size` images, or image by image, or what `collate` makes of these in the workers. The
        last batch of a worker may be smaller. `more` are other options of DataLoader.
        """
        return of_stream(self, batch_size, num_workers, collate, more)

    def reading(self) -> Reading[StreamedShard, DatasetImage]:
        """This reader, at the beginning of the epoch."""
        shards = list(self.shards)
        if self._shuffle:
            random.Random(f"{self._seed}/{self.epoch}").shuffle(shards)  # the same on every rank
        place, of = self._reader()
        seed = f"{self._seed}/{self.epoch}/{place}"
        return Reading(shards[place::of], self._images_of, self._shuffle, seed, place, self.told(of))

    def told(self, readers: int) -> dict[str, Any]:
        """What a state must agree with."""
        version = hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()
        return {"version": version[:32], "seed": self._seed, "shuffle": self._shuffle, "epoch": self.epoch,
                "readers": readers}  # fmt: skip

    def _images_of(self, shard: StreamedShard) -> Iterator[DatasetImage]:
        return _images(shard, self._form)

    def torch(self) -> Any:
        """The stream as an IterableDataset, for a DataLoader with any number of workers."""
        from torch.utils.data import IterableDataset

        self._sent = True
        stream = self

        class Images(IterableDataset):  # type: ignore[misc, type-arg, unused-ignore]
            def __iter__(self) -> Iterator[DatasetImage]:
                return iter(stream)

            def __reduce__(self) -> tuple[Any, ...]:
                return ImageStream.torch, (stream.of_this_rank(),)

        return Images()

    def rank_now(self) -> int:
        return self.of_this_rank().rank or 0

    def ranks(self) -> int:
        return self.of_this_rank().world_size or 1

    def of_this_rank(self) -> "ImageStream":
        """The stream as a DataLoader's worker takes it: a process that is started anew does not know its rank."""
        found = copy(self)
        if found.rank is None:
            found.rank, found.world_size = _distributed() or (None, None)
        return found

    def _reader(self) -> tuple[int, int]:
        """Which of how many readers this is: over all ranks, and the workers of each."""
        rank, ranks = self.rank_now(), self.ranks()
        worker, workers = _worker()
        return rank * workers + worker, ranks * workers


def _distributed() -> tuple[int, int] | None:
    """This process's rank, and of how many; None if nothing says so."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, ranks = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return None if rank is None or ranks is None else (int(rank), int(ranks))


def _worker() -> tuple[int, int]:
    torch = sys.modules.get("torch.utils.data")
    found = None if torch is None else torch.get_worker_info()
    return (0, 1) if found is None else (found.id, found.num_workers)


def _images(shard: StreamedShard, form: str) -> Iterator[DatasetImage]:
    with _fetched(shard) as file:
        yield from _of_tar(file) if form == "webdataset" else _of_parquet(file)


def _fetched(shard: StreamedShard) -> IO[bytes]:
    """A shard as a file that has no name, verified. A connection that breaks is made again after a pause, from where it
    broke. Raises ClientError."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  its reader closes it
    try:
        attempt = 0
        while True:
            attempt += 1
            refusal, pause = _fetch_rest(shard.url, file)
            if refusal is None:
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256:
                    file.seek(0)
                    return file
                refusal = ClientError(0, "damaged", "A shard does not match its sha256; try again.")
                _empty(file)
            if attempt == _TRIES:
                raise refusal
            time.sleep(max(pause, 0.25 * 2**attempt))
    except BaseException:
        file.close()
        raise


def _fetch_rest(url: str, file: IO[bytes]) -> tuple[ClientError | None, float]:
    """Why another try is needed, and after how many seconds the server wants it. Raises ClientError if it is final."""
    have = file.seek(0, io.SEEK_END)
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=60.0) as answer:
            if answer.status_code == 416:
                return None, 0.0
            if answer.status_code == 429 or answer.status_code >= 500:
                message = f"A shard cannot be read: {answer.url.host} answered {answer.status_code}"
                return ClientError(answer.status_code, "unreachable", message), retry_after(answer)
            if answer.status_code >= 400:
                message = f"A shard cannot be read: the server answered {answer.status_code}. Is the dataset there?"
                raise ClientError(answer.status_code, "no_shard", message)
            if answer.status_code != 206:
                _empty(file)
            for data in answer.iter_bytes():
                file.write(data)
        return None, 0.0
    except httpx.TransportError as error:
        return ClientError(0, "unreachable", f"A shard cannot be read: {error}"), 0.0


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


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
