"""Parquet: one row per image, with its bytes as an Image feature of `datasets`, or with a link to it.

Row groups have a fixed number of rows and all options of the writer are set, so the bytes are reproducible. Only this
file imports pyarrow, and only when it is needed, because pyarrow loads slowly.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from services.core.exports.members import Member, Record
from services.core.exports.records import File
from services.core.exports.shards import ExportFailed, ExportWriter, Shard
from services.core.storage import signed_urls

_ROWS_INLINE = 100  # per row group, and in memory
_ROWS_REFERENCE = 5_000
_LEFT_OUT = {"seed_string", "safety_checked"}  # here seed is an integer column, and flagged may be null
_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}


def write(writer: ExportWriter, shard: Shard, members: Iterable[Member]) -> list[File]:
    import pyarrow.parquet

    inline = writer.export.options.images == "inline"
    schema = _schema(inline)
    rows = _inline(writer, members) if inline else _references(writer, members)
    images = 0
    with tempfile.TemporaryFile() as file:
        with pyarrow.parquet.ParquetWriter(
            file, schema, compression="zstd", compression_level=3, use_dictionary=False, version="2.6",
            data_page_version="1.0", write_statistics=not inline,
        ) as table:  # fmt: skip
            while group := list(islice(rows, _ROWS_INLINE if inline else _ROWS_REFERENCE)):
                table.write_table(pyarrow.Table.from_pylist(group, schema), row_group_size=len(group))
                images += len(group)
        return [writer.put(f"data/{shard.name}.parquet", file, "application/vnd.apache.parquet", images)]


def _schema(inline: bool) -> Any:
    import pyarrow as pa

    text = pa.string()
    types = {str: text, int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    special = dict.fromkeys(("width", "height", "num_inference_steps"), pa.int32()) | {"unknown_words": pa.list_(text)}
    picture = [("image", pa.struct([("bytes", pa.binary()), ("path", text)]))] if inline else [("url", text)]
    fields = [
        (name, special.get(name, types[kind])) for name, kind in Record.__annotations__.items() if name not in _LEFT_OUT
    ]
    return pa.schema([*picture, *fields], {"huggingface": json.dumps(_FEATURES)} if inline else None)


def _inline(writer: ExportWriter, members: Iterable[Member]) -> Iterator[dict[str, Any]]:
    for member, data in writer.pictures(members):
        yield {"image": {"bytes": data, "path": member.file_name}} | _row(member)


def _references(writer: ExportWriter, members: Iterable[Member]) -> Iterator[dict[str, Any]]:
    if not writer.secret or not writer.export.base_url:
        raise ExportFailed("Links to images cannot be made: PRESSWORK_SECRET or PRESSWORK_PUBLIC_URL is not set.")
    for member in members:
        writer.keep()
        url = signed_urls.image_url(writer.export.base_url, writer.secret, writer.export.job_id, member.index)
        yield {"url": url} | _row(member)


def _row(member: Member) -> dict[str, Any]:
    """The record with nulls and lists, which a schema allows."""
    shown = {"custom_id": member.payload.custom_id, "model": member.model, "flagged": member.flagged}
    return {**member.record(), **shown, "unknown_words": list(member.unknown_words)}
