"""Where a catalogue's items come from: an address, an uploaded file, or an object of another bucket, as a local file.

Each is copied to disk as a whole before it is read, so a source that changes later changes nothing. gzip is unpacked.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from services.core.catalogues.definition import SourceFields
from services.core.extras import MissingExtra
from services.core.fetching.connections import Rules
from services.core.fetching.errors import FetchFailed
from services.core.fetching.fetch import Fetched, fetch, unpacked
from services.core.items import delimited, encodings
from services.core.items.errors import Unreadable, WrongOption
from services.core.items.input_file import EXTENSIONS, Form
from services.core.items.records import Item, ItemFile
from services.core.model.errors import ObjectMissing, PressworkError, StoreRefused
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

_BLOCK = 1 << 18
_GZIP = b"\x1f\x8b"
_OPTION = re.compile(r"--(format|delimiter|encoding)\b")


class SourceFailed(PressworkError):
    """The source could not be taken. `again`: it may work later."""

    def __init__(self, code: str, message: str, *, again: bool = False) -> None:
        self.code, self.again = code, again
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Taken:
    """A source as it was when it was taken. `title` names it for people; `etag` and `modified` are its server's."""

    title: str
    size: int
    sha256: bytes
    etag: str = ""
    modified: str = ""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An uploaded file: where it is stored, and what it was called."""

    key: str
    filename: str


def rules(settings: Settings) -> Rules:
    return Rules(
        settings.fetch_networks,
        settings.fetch_http,
        max_bytes=settings.max_source_bytes,
        seconds=settings.fetch_seconds,
    )


def take(
    source: SourceFields,
    path: Path,
    *,
    settings: Settings,
    store: ImageStore,
    uploaded: Uploaded | None = None,
    before: Taken | None = None,
) -> Taken | None:
    """Copies the source to `path`. None: the server says that it is still what it was `before`.

    Raises:
        SourceFailed: it is missing, forbidden, too large or changing, or its server is away.
        StoreUnavailable: the store of uploaded files cannot be reached.
    """
    known = (before.etag, before.modified) if before else ("", "")
    with path.open("w+b") as file:
        if source.url is not None:
            title = _shown(source.url)
            found = _of_fetch(lambda: fetch(source.url, file, rules(settings), etag=known[0], modified=known[1]))
        elif source.s3 is not None:
            title = f"s3://{source.s3}"
            found = _of_bucket(source.s3, file, settings, store, known[0])
        elif uploaded is not None:
            title = uploaded.filename
            found = _of_blocks(store.stream(uploaded.key), file, settings.max_source_bytes, title)
        else:
            raise SourceFailed("missing_file", "No file was uploaded for this catalogue yet.")
    if found is None:
        return None
    _unpack(path, title, settings.max_source_bytes)
    return Taken(title, found.size, found.sha256, found.etag, found.modified)


def form(source: SourceFields, title: str) -> Form:
    """The format of the file: as the source says, or as the ending of its name shows. Raises SourceFailed."""
    if source.format is not None:
        found: Form = source.format
        return found
    ending = Path(title.removesuffix(".gz")).suffix.lower()
    known = EXTENSIONS.get(ending, "lines")
    if known == "lines":
        raise SourceFailed("unknown_format", f"{title} has none of the known endings; source.format says what it is.")
    return known


@contextmanager
def items(source: SourceFields, path: Path, title: str, wanted: Sequence[str]) -> Iterator[tuple[Iterator[Item], str]]:
    """The items of a source that was taken to `path`, and what their places count. `wanted`: see ItemFile.
    Raises SourceFailed, also while the items are read."""
    try:
        mark = None if source.delimiter is None else delimited.mark(source.delimiter)
        code = None if source.encoding is None else encodings.named(source.encoding)
        file = ItemFile(path=path, form=form(source, title), title=title, wanted=wanted, delimiter=mark, encoding=code)
        yield file.items(), file.unit
    except MissingExtra as error:
        raise SourceFailed("unreadable_source", f"The scheduler cannot read {title}: {error}") from None
    except (Unreadable, WrongOption) as error:
        raise SourceFailed("unreadable_source", _OPTION.sub(r"source.\1", str(error))) from None


def _of_fetch(run: Callable[[], Fetched | None]) -> Fetched | None:
    try:
        return run()
    except FetchFailed as error:
        raise SourceFailed(error.code, str(error), again=error.again) from None


def _of_bucket(address: str, file: IO[bytes], settings: Settings, store: ImageStore, etag: str) -> Fetched | None:
    bucket, _, key = address.partition("/")
    if bucket not in settings.source_buckets:
        raise SourceFailed("forbidden_bucket", f"PRESSWORK_SOURCE_BUCKETS does not name the bucket {bucket}.")
    if bucket == settings.bucket and key.startswith(settings.prefix):
        raise SourceFailed("forbidden_bucket", "A source cannot be one of Presswork's own objects.")
    try:
        found = store.foreign(bucket, key, etag)
    except ObjectMissing:
        raise SourceFailed("missing_source", f"There is no s3://{address}.") from None
    except StoreRefused:
        raise SourceFailed("forbidden_bucket", f"The store's key may not read s3://{address}.") from None
    if found is None:
        return None
    if found.size > settings.max_source_bytes:
        raise SourceFailed("too_large", _too_large(f"s3://{address}", settings.max_source_bytes))
    read = _of_blocks(found.blocks, file, settings.max_source_bytes, f"s3://{address}")
    if read.size != found.size:
        raise SourceFailed("changed", f"s3://{address} changes while it is read.", again=True)
    return Fetched(read.size, read.sha256, found.etag, "")


def _of_blocks(blocks: Iterator[bytes], file: IO[bytes], most: int, title: str) -> Fetched:
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        size += len(block)
        if size > most:
            raise SourceFailed("too_large", _too_large(title, most))
        digest.update(block)
        file.write(block)
    return Fetched(size, digest.digest())


def _unpack(path: Path, title: str, most: int) -> None:
    """Unpacks a file of gzip in its place."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            return
        file.seek(0)
        aside = path.with_name(f"{path.name}.unpacked")
        with aside.open("wb") as target:
            blocks = iter(lambda: file.read(_BLOCK), b"")
            try:
                for block in unpacked(blocks, most, title):
                    target.write(block)
            except FetchFailed as error:
                aside.unlink()
                raise SourceFailed(error.code, str(error), again=error.again) from None
    aside.replace(path)


def _shown(url: str) -> str:
    """The address without its query, which may hold a secret."""
    return url.partition("?")[0]


def _too_large(title: str, most: int) -> str:
    return f"{title} is larger than {most:,} bytes."
