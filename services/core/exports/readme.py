"""README.md of an export: the head with which `datasets.load_dataset` reads the splits and columns that were asked for.

Without it a loader guesses: splits from parts of names, and the columns of tar files from their first five samples.
"""

import tempfile
from collections.abc import Mapping

from services.core.exports.members import Record
from services.core.exports.records import Export, File
from services.core.exports.shards import ExportWriter
from services.core.model import file_names, ids
from services.core.model.licenses import License

README = "README.md"
_TYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}


def write(writer: ExportWriter[Export]) -> File:
    with tempfile.TemporaryFile() as file:
        file.write(_text(writer.export).encode())
        return writer.put(README, file, "text/markdown", 0)


def _text(export: Export) -> str:
    assert export.plan is not None
    counted = {name: (shards, images) for name, (shards, images) in export.plan.splits.items() if images}
    head = ["configs:", "- config_name: default", "  data_files:"]
    for name, (shards, _) in counted.items():
        head += [f"  - split: {name}", f"    path: {_path(export, name, shards)}"]
    if export.format == "webdataset" and export.plan.formats:
        head += ["dataset_info:", "  features:", *features(export.plan.formats)]
    table = [f"| {name} | {images:,} |" for name, (_, images) in counted.items()]
    body = [
        f"# {ids.public_job(export.job_id)} as {export.format}", "",
        "`datasets.load_dataset` reads this folder by its path.", "", "| split | images |", "|---|---|", *table,
    ]  # fmt: skip
    return "\n".join(["---", *head, "---", *body, *licenses(export.plan.licenses), ""])


def licenses(found: Mapping[str, License]) -> list[str]:
    """What the licences of the models that drew the images forbid."""
    lines: list[str] = []
    for model, one in found.items():
        text = f"[{one.name}]({one.link})" if one.link else one.name
        lines += ["", f"## Drawn by {model}", "", f"The model's licence is {text}."]
        if one.accepted_at:
            lines[-1] += f" {one.accepted_by} accepted it on {one.accepted_at}."
        if one.restrictions:
            lines += [
                "The model, and what it draws, must not be used for:",
                "",
                *(f"- {rule}" for rule in one.restrictions),
            ]
    return lines


def _path(export: Export, split: str, shards: int) -> str:
    """The files of a split. None of another export that had another number of shards."""
    if export.format == "imagefolder":
        return f"'{file_names.split_folder(split, export.options.split)}/**'"
    extension = {"webdataset": "tar", "zip": "zip"}.get(export.format, export.format)
    return f"'data/{split}-*-of-{shards:05d}.{extension}'"


def features(formats: tuple[str, ...]) -> list[str]:
    """The columns of a sample, as YAML: a picture in one of the job's formats, its record, its prompt."""
    lines = [line for name in formats for line in (f"  - name: {file_names.EXTENSIONS[name]}", "    dtype: image")]
    lines += ["  - name: json", "    struct:"]
    for name, kind in Record.__annotations__.items():
        lines += [f"    - name: {name}", f"      dtype: {_TYPES[kind]}"]
    for name in ("txt", "__key__", "__url__"):
        lines += [f"  - name: {name}", "    dtype: string"]
    return lines
