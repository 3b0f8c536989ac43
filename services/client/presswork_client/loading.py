"""A stream's images through a PyTorch DataLoader that can be stopped in mid-epoch and goes on there, image by image."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from presswork_client.reading import read_by
from presswork_client.transport import ClientError

if TYPE_CHECKING:
    from presswork_client.streams import DatasetImage, ImageStream


class ImageLoader:
    """Iterable, again and again: each time it reads the stream's epoch. Batches say which reader they are from, so a
    state knows what was given, and not what workers have fetched ahead."""

    def __init__(
        self,
        stream: "ImageStream",
        batch_size: int | None,
        num_workers: int,
        collate: Callable[[Any], Any] | None,
        more: dict[str, Any],
    ) -> None:
        self.stream = stream
        self._batch_size, self._workers, self._collate, self._more = batch_size, num_workers, collate, more
        self._read: dict[int, int] = {}
        self._resumed: dict[int, int] = {}

    def __iter__(self) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        self._read = self._resumed or dict.fromkeys(self._places(), 0)
        self._resumed = {}
        batches = _batches(self.stream, self._batch_size, self._collate, dict(self._read))
        for place, count, batch in DataLoader(batches, batch_size=None, num_workers=self._workers, **self._more):
            self._read[place] = count
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is: JSON. Each rank saves its own."""
        read = self._read or dict.fromkeys(self._places(), 0)
        return self.stream.told(self._readers()) | {"read": {str(place): count for place, count in read.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration gives the rest of the epoch, whose number the stream takes. Raises ClientError if the
        state is of another stream, seed, rank, or number of ranks or workers."""
        if isinstance(state.get("epoch"), int):
            self.stream.epoch = state["epoch"]
        self._resumed = read_by(state, self.stream.told(self._readers()), self._places())
        self._read = dict(self._resumed)

    def _readers(self) -> int:
        return self.stream.ranks() * max(1, self._workers)

    def _places(self) -> list[int]:
        workers = max(1, self._workers)
        return [self.stream.rank_now() * workers + worker for worker in range(workers)]


def _batches(
    stream: "ImageStream", size: int | None, collate: Callable[[Any], Any] | None, read: dict[int, int]
) -> Any:
    from torch.utils.data import IterableDataset

    class Batches(IterableDataset):  # type: ignore[misc, type-arg, unused-ignore]
        def __iter__(self) -> Iterator[tuple[int, int, Any]]:
            reading = stream.reading()
            reading.count = read[reading.place]
            held: list[DatasetImage] = []
            for image in reading:
                if size is None:
                    yield reading.place, reading.count, image if collate is None else collate(image)
                    continue
                held.append(image)
                if len(held) == size:
                    yield reading.place, reading.count, held if collate is None else collate(held)
                    held = []
            if held:
                yield reading.place, reading.count, held if collate is None else collate(held)

        def __reduce__(self) -> tuple[Any, ...]:
            return _batches, (stream.of_this_rank(), size, collate, read)

    return Batches()


def of_stream(stream: "ImageStream", batch_size: int | None, num_workers: int, collate: Any, more: Any) -> ImageLoader:
    if batch_size is not None and batch_size < 1:
        raise ClientError(0, "invalid_value", "A batch has one image or more; batch_size None gives them one by one.")
    return ImageLoader(stream, batch_size, num_workers, collate, more)
