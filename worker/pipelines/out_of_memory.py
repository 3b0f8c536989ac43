"""A device's memory: how its many ways of running out are told from other errors."""

import contextlib
from collections.abc import Iterator

from worker.pipeline import OutOfMemory

# What allocators, kernels and runtimes say; some raise classes of their own, some only these words.
WORDS = (
    "bad_alloc", "bad allocation", "out of memory", "failed to allocate", "allocate memory", "not enough memory",
    "alloc_failed",
)  # fmt: skip


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or upon, and so on. Who ends a failed recording of a CUDA graph, for one,
    may raise an error of its own over the one that said why."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def is_out_of_memory(error: BaseException) -> bool:
    said = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or "outofmemoryerror" in said or any(words in said for words in WORDS)


@contextlib.contextmanager
def out_of_memory_for(size: int) -> Iterator[None]:
    """Raises OutOfMemory for whatever says that there was no room for a batch of `size`."""
    try:
        yield
        return
    except Exception as error:
        if not any(map(is_out_of_memory, causes(error))):
            raise
    # Outside the handlers: a context would keep the failed batch's tensors alive while a smaller one is tried.
    raise OutOfMemory(f"The device has no room for a batch of {size}.")
