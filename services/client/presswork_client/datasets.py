"""A dataset by its name: its versions, their files, and their images as they are stored, shard by shard."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from presswork_client.answers import Dataset, DatasetComparison, DatasetFile, DatasetVersion
from presswork_client.pulling import Pulled, Source, pull
from presswork_client.streams import ImageStream, StreamedShard
from presswork_client.transport import ClientError, Transport


class DatasetHandle:
    """One dataset. Every method raises ClientError."""

    def __init__(self, transport: Transport, name: str) -> None:
        self._transport, self.name = transport, name
        self._path = f"/v1/datasets/{quote(name, safe='')}"

    def show(self) -> Dataset:
        found: Dataset = self._call("GET", "")
        return found

    def add(self, jobs: Sequence[str] = (), labels: Sequence[str] = ()) -> Dataset:
        """Adds jobs by id, and all that have one of the labels, such as "run:nightly"."""
        found: Dataset = self._call("POST", "/sources", json={"jobs": list(jobs), "labels": list(labels)})
        return found

    def remove(self, jobs: Sequence[str] = (), labels: Sequence[str] = ()) -> Dataset:
        """Takes sources out: the next version does without their images."""
        found: Dataset = self._call("POST", "/sources/remove", json={"jobs": list(jobs), "labels": list(labels)})
        return found

    def change(self, **fields: Any) -> Dataset:
        """Sets filters or types."""
        found: Dataset = self._call("PATCH", "", json=fields)
        return found

    def delete(self) -> None:
        """Deletes the dataset with all its versions. Jobs and images stay."""
        self._call("DELETE", "")

    def export(self, *, while_running: bool = False) -> DatasetVersion:
        """Asks for the next version."""
        found: DatasetVersion = self._call("POST", "/versions", json={"while_running": while_running})
        return found

    def versions(self) -> Iterator[DatasetVersion]:
        """The newest first, page by page."""
        return self._transport.pages(f"{self._path}/versions", {}, 100)

    def version(self, number: int) -> DatasetVersion:
        found: DatasetVersion = self._call("GET", f"/versions/{number}")
        return found

    def cancel(self, number: int) -> DatasetVersion:
        found: DatasetVersion = self._call("POST", f"/versions/{number}/cancel")
        return found

    def delete_version(self, number: int) -> None:
        """Deletes one version that is not being written; the others stay as they are."""
        self._call("DELETE", f"/versions/{number}")

    def diff(self, before: int, after: int, *, limit: int = 100) -> DatasetComparison:
        """The images that one of two versions holds and the other does not."""
        asked = {"before": before, "after": after, "limit": limit}
        found: DatasetComparison = self._call("GET", "/diff", params=asked)
        return found

    def files(self, version: int | None = None, *, split: str | None = None) -> Iterator[DatasetFile]:
        """The files of a version by path, page by page; without a number, of the last one that is complete."""
        asked = {} if split is None else {"split": split}
        return self._transport.pages(f"{self._path}/versions/{self._number(version)}/files", asked, 1000)

    def read(self, file: DatasetFile, begin: int = 0) -> Iterator[bytes]:
        """The bytes of one of `files` from `begin` on, as they come. Raises ClientError at the end if all were read
        and their sha256 is another."""
        digest = hashlib.sha256()
        for data in self._transport.blocks(file["url"], file["bytes"], begin):
            digest.update(data)
            yield data
        if not begin and digest.hexdigest() != file["sha256"]:
            raise ClientError(0, "damaged", f"{file['path']} does not match its sha256; try again.")

    def urls(self, version: int | None = None, *, split: str | None = None) -> list[str]:
        """The addresses of a WebDataset's shards, for `webdataset.WebDataset(urls)`. They need no key and are valid as
        long as the dataset."""
        return [file["url"] for file in self.files(version, split=split) if file["path"].endswith(".tar")]

    def stream(
        self,
        version: int | None = None,
        *,
        split: str | None = None,
        shuffle: int | bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> ImageStream:
        """The images of a version, read shard by shard from the store: nothing is kept on this machine.

        `shuffle` mixes the shards, and the images among so many (True: 1,000). Of several ranks and DataLoader workers
        each reads shards of its own, so that together they read each image once; `rank` and `world_size` are those of
        torch.distributed or of its variables unless given.
        """
        number = self._number(version)
        form = self.show()["format"]
        if form not in ("webdataset", "parquet"):
            message = f"{self.name} is written as {form}; only webdataset and parquet are streamed: pull it instead."
            raise ClientError(0, "not_streamed", message)
        kept = (".tar", ".parquet")
        shards = [file for file in self.files(number, split=split) if file["split"] and file["path"].endswith(kept)]
        addresses = tuple(StreamedShard(file["url"], file["images"], file["sha256"]) for file in shards)
        return ImageStream(addresses, form, int(shuffle) if shuffle is not True else 1000, seed, rank, world_size)

    def pull(
        self,
        folder: Path,
        version: int | None = None,
        *,
        split: str | None = None,
        parallel: int = 8,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Pulled:
        """Fetches what is missing of a version into a folder, several files at a time, each verified. Files of another
        version of the dataset that this one has not are deleted at the end, with `split` those of that split alone. An
        interrupted call is resumed. The folder must be empty, or one that the dataset was pulled to before."""
        files = list(self.files(version, split=split))
        source = Source(self.show()["id"], self.name, split)
        return pull(self._transport, files, folder, source, parallel, on_bytes)

    def _number(self, version: int | None) -> int:
        found = version if version is not None else self.show()["version"]
        if found is None:
            message = f"The dataset {self.name} has no version yet; export one first."
            raise ClientError(404, "not_found", message)
        return found

    def _call(self, method: str, path: str, **parts: Any) -> Any:
        return self._transport.call(method, self._path + path, **parts)
