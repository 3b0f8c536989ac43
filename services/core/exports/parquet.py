"""Parquet: one row per image, with its bytes as an Image feature of `datasets`, or with a link to it. Also the table of
records that stands beside image files.

Row groups have a fixed number of rows and all options of the writer are set, so the bytes are reproducible. Only this
file imports pyarrow, and only when it is needed, because pyarrow loads slowly.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import IO, Any, Self

from services.core.exports.members import Member, Record
from services.core.exports.records import File
from services.core.exports.shards import ExportFailed, ExportWriter, Shard
from services.core.model import metadata_types
from services.core.model.metadata_types import Kind
from services.core.storage import signed_urls

_ROWS_INLINE = 100  # per row group, and in memory
_ROWS_REFERENCE = 5_000
_LEFT_OUT = {"safety_checked"}  # here flagged may be null
_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}


def write(writer: ExportWriter[Any], shard: Shard, members: Iterable[Member]) -> list[File]:
    import pyarrow as pa

    inline = writer.export.options.images == "inline"
    schema = _schema(writer.export.columns, inline=inline)
    rows = _inline(writer, members) if inline else _references(writer, members)
    images = 0
    with tempfile.TemporaryFile() as file:
        with _writer(file, schema, statistics=not inline) as table:
            while group := list(islice(rows, _ROWS_INLINE if inline else _ROWS_REFERENCE)):
                table.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
                images += len(group)
        return [writer.put(f"data/{shard.name}.parquet", file, "application/vnd.apache.parquet", images)]


class RecordTable:
    """The records of image files as a metadata.parquet, which `load_dataset` reads with the types declared here. From
    JSON or CSV it would guess them. A context manager; the file is complete after `close`."""

    NAME = "metadata.parquet"

    def __init__(self, file: IO[bytes], columns: Mapping[str, Kind]) -> None:
        import pyarrow as pa

        fields = [*_fields(), *metadata_types.pyarrow_fields(columns, pa)]
        self._schema = pa.schema([("file_name", pa.string()), *fields])
        self._table = _writer(file, self._schema, statistics=True)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.close()

    def add(self, file_name: str, record: Mapping[str, Any]) -> None:
        self._rows.append({"file_name": file_name, **record})
        if len(self._rows) == _ROWS_REFERENCE:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._table.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._table.write_table(pa.Table.from_pylist(self._rows, self._schema), row_group_size=len(self._rows))
            self._rows.clear()


def _writer(file: IO[bytes], schema: Any, *, statistics: bool) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetWriter(
        file, schema, compression="zstd", compression_level=3, use_dictionary=False, version="2.6",
        data_page_version="1.0", write_statistics=statistics,
    )  # fmt: skip


def _fields() -> list[tuple[str, Any]]:
    """The names and types of a record."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    special = dict.fromkeys(("width", "height", "num_inference_steps"), pa.int32())
    return [(name, special.get(name, types[kind])) for name, kind in Record.__annotations__.items()]


def _schema(columns: Mapping[str, Kind], *, inline: bool) -> Any:
    import pyarrow as pa

    text = pa.string()
    picture = [("image", pa.struct([("bytes", pa.binary()), ("path", text)]))] if inline else [("url", text)]
    special = {"unknown_words": pa.list_(text)}
    fields = [(name, special.get(name, kind)) for name, kind in _fields() if name not in _LEFT_OUT]
    fields += metadata_types.pyarrow_fields(columns, pa)
    return pa.schema([*picture, *fields], {"huggingface": json.dumps(_FEATURES)} if inline else None)


def _inline(writer: ExportWriter[Any], members: Iterable[Member]) -> Iterator[dict[str, Any]]:
    for member, data in writer.pictures(members):
        yield {"image": {"bytes": data, "path": member.file_name}} | _row(member)


def _references(writer: ExportWriter[Any], members: Iterable[Member]) -> Iterator[dict[str, Any]]:
    if not writer.secret or not writer.export.base_url:
        raise ExportFailed("Links to images cannot be made: PRESSWORK_SECRET or PRESSWORK_PUBLIC_URL is not set.")
    for member in members:
        writer.keep()
        url = signed_urls.image_url(writer.export.base_url, writer.secret, member.job_id, member.index)
        yield {"url": url} | _row(member)


def _row(member: Member) -> dict[str, Any]:
    """The record with nulls and lists, which a schema allows."""
    shown = {"custom_id": member.payload.custom_id, "model": member.model, "flagged": member.flagged}
    return {**member.row(), **shown, "unknown_words": list(member.unknown_words)}
