"""Recognizes out-of-memory errors of all devices and runtimes."""

import contextlib
from collections.abc import Iterator

from worker.pipeline import OutOfMemory

# Messages of allocators, kernels and runtimes. Some raise their own classes, some only these words.
WORDS = (
    "bad_alloc", "bad allocation", "out of memory", "failed to allocate", "allocate memory", "not enough memory",
    "alloc_failed",
)  # fmt: skip


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes and contexts.

    The reason may be further down: ending a failed CUDA graph capture, for example, can raise another error over it.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def is_out_of_memory(error: BaseException) -> bool:
    message = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or "outofmemoryerror" in message or any(words in message for words in WORDS)


@contextlib.contextmanager
def out_of_memory_for(size: int) -> Iterator[None]:
    """Turns every kind of out-of-memory error into OutOfMemory, for a batch of `size`."""
    try:
        yield
        return
    except Exception as error:
        if not any(map(is_out_of_memory, causes(error))):
            raise
    # Raised outside the handler: an exception context would keep the failed batch's tensors alive during the retry.
    raise OutOfMemory(f"The device has too little memory for a batch of {size}.")
