"""A device's memory: how its many ways of running out are told from other errors."""

import contextlib
from collections.abc import Iterator

from worker.pipeline import OutOfMemory

# What allocators, kernels and runtimes say; some raise classes of their own, some only these words.
WORDS = (
    "bad_alloc", "bad allocation", "out of memory", "failed to allocate", "allocate memory", "not enough memory",
    "alloc_failed",
)  # fmt: skip


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Raises OutOfMemory for whatever says that there was no room for a batch of `size`."""
    try:
        yield
        return
    except MemoryError:
        pass
    except Exception as error:
        said = f"{type(error).__name__}: {error}".lower()
        if "outofmemoryerror" not in said and not any(words in said for words in WORDS):
            raise
    # Outside the handlers: a context would keep the failed batch's tensors alive while a smaller one is tried.
    raise OutOfMemory(f"The device has no room for a batch of {size}.")
