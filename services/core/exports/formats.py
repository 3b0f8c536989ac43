"""The registry of export formats: each name, the module that writes it, and what decides where its shards end.

A new format is one line here and one module with `write(writer, shard, members)` in this package. The API, the OpenAPI
document and the command line read the names from here. Nothing is imported before a format is written.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.core.exports.members import Member
    from services.core.exports.records import File
    from services.core.exports.shards import ExportWriter, Shard

    Writer = Callable[[ExportWriter[Any], Shard, Iterable[Member]], list[File]]
    FormatName = str


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A shard ends after `max_images` images, if the request asks for more, and where it would grow too large, unless
    it is a folder of files. `references`: the format can hold links in place of pictures; such a shard has no limit of
    bytes."""

    module: str
    max_images: int | None = None
    limits_bytes: bool = True
    references: bool = False

    def writer(self) -> "Writer":
        """Writes one shard from its images, in order, and returns the files that it has stored."""
        return cast("Writer", import_module(self.module).write)


FORMATS = {
    "webdataset": ExportFormat("services.core.exports.webdataset"),
    "parquet": ExportFormat("services.core.exports.parquet", references=True),
    "imagefolder": ExportFormat("services.core.exports.imagefolder", max_images=10_000, limits_bytes=False),
    "zip": ExportFormat("services.core.exports.zip_archive"),
}

if not TYPE_CHECKING:
    FormatName = Literal[tuple(FORMATS)]  # so that pydantic and typer list the names and refuse others
