"""The description of a version: README.md (a card that `load_dataset` and the Hugging Face hub read), manifest.json and
SHA256SUMS for `sha256sum -c`. Energon's files beside a WebDataset. Equal versions have equal ones.

README.md names each shard of each split: a file of another version that lies beside them is not read.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, Any

from services.core.datasets import dataset_records, removals
from services.core.datasets.dataset_records import DatasetFile, JobState, Version
from services.core.db.database import Database
from services.core.exports import manifest, readme
from services.core.exports.records import File
from services.core.exports.shards import ExportWriter
from services.core.model import file_names, ids, states

_KEPT = 10_000  # removed images, from one extension of the lease to the next
_MARKUP = frozenset("|\\<>&`*_[]")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))


def write(writer: ExportWriter[Version], database: Database) -> list[File]:
    """Writes these files. Call it when all shards are recorded."""
    version = writer.export
    with database.read_system() as connection:
        removed = dataset_records.removed(connection, version)
        jobs = dataset_records.jobs(connection, version.dataset.id, version.number)
    with (
        tempfile.TemporaryFile() as card,
        tempfile.TemporaryFile() as listed,
        tempfile.TemporaryFile() as sums,
    ):
        card.write(_card(version, jobs, _shards(writer, database)).encode())
        own = [writer.put(readme.README, card, "text/markdown", 0), *_energon(writer, database)]
        _begin(listed, version, jobs)
        _list(listed, "removed", _removed(writer, removed))
        _list(listed, "files", _summed(sums, chain(own, _files(writer, database))))
        listed.write(b"\n}\n")
        described = writer.put(manifest.MANIFEST, listed, "application/json", 0)
        sums.write(manifest.line(described))
        return [*own, described, writer.put(manifest.SUMS, sums, "text/plain", 0)]


def _begin(listed: IO[bytes], version: Version, jobs: Sequence[JobState]) -> None:
    """All but the lists that may be long."""
    assert version.plan is not None
    counted = version.plan.counted
    head: dict[str, Any] = {
        "version": 1,
        "dataset": version.dataset.name,
        "number": version.number,
        "base": version.base or None,
        "while_running": version.while_running,
        "format": version.format,
        "images": counted.images,
        "splits": {name: {"shards": shards, "images": images} for name, (shards, images) in counted.splits.items()},
        "definition": version.definition.model_dump(mode="json", exclude_none=True),
        "columns": {f"metadata.{name}": kind for name, kind in counted.columns.items()},
        "models": sorted(set(counted.models.values())),
        "jobs": [
            {
                "job": ids.public_job(job.job_id),
                "retry_of": _parent(job),
                "status": job.state,
                "images": job.images,
            }
            for job in jobs
        ],
        "jobs_gone": list(version.plan.gone),
    }
    if counted.licenses:
        head["licenses"] = {name: found.as_json() for name, found in counted.licenses.items()}
    listed.write(json.dumps(head, indent=2).removesuffix("\n}").encode())


def _list(listed: IO[bytes], name: str, entries: Iterable[dict[str, Any]]) -> None:
    """One more field of the manifest, an entry a line."""
    listed.write(f',\n  "{name}": ['.encode())
    number = -1
    for number, entry in enumerate(entries):
        listed.write(f"{',' if number else ''}\n    {json.dumps(entry)}".encode())
    listed.write(b"]" if number < 0 else b"\n  ]")


def _summed(sums: IO[bytes], files: Iterable[File]) -> Iterator[dict[str, Any]]:
    """The manifest's entry of each file; writes its sha256 to `sums`."""
    for file in files:
        sums.write(manifest.line(file))
        yield {"path": file.path, "images": file.images, "bytes": file.bytes, "sha256": file.sha256.hex()}


def _removed(writer: ExportWriter[Version], packed: bytes | None) -> Iterator[dict[str, Any]]:
    for number, (job, index, why) in enumerate(removals.unpack(packed)):
        if number % _KEPT == 0:
            writer.keep()
        yield {"job": job, "index": index, "why": why}


def _parent(job: JobState) -> str | None:
    return None if job.root_id == job.job_id else ids.public_job(job.root_id)


def _files(writer: ExportWriter[Version], database: Database) -> Iterator[DatasetFile]:
    after = ""
    while True:
        writer.keep()
        with database.read_system() as connection:
            of = writer.export.dataset.id, writer.export.number
            page = dataset_records.files(connection, *of, after=after, limit=1_000)
        yield from (file for file in page if file.split is not None)
        if len(page) < 1_000:
            return
        after = page[-1].path


def _shards(writer: ExportWriter[Version], database: Database) -> dict[str, list[str]]:
    """The paths by which a loader finds each split's pictures."""
    found: dict[str, list[str]] = {name: [] for name in writer.export.definition.split}
    for file in _files(writer, database):
        if file.path.endswith(".idx"):
            continue
        if writer.export.format != "imagefolder":
            found[str(file.split)].append(file.path)
        elif file.path.endswith("/metadata.parquet"):
            found[str(file.split)].append(f"{file.path.rpartition('/')[0]}/**")
    return {name: paths for name, paths in found.items() if paths}


def _energon(writer: ExportWriter[Version], database: Database) -> list[File]:
    """What Energon reads beside a WebDataset's shards: their sizes, the splits, and what a sample is."""
    version = writer.export
    if version.format != "webdataset":
        return []
    shards = [file for file in _files(writer, database) if file.path.endswith(".tar")]
    parts = {name: [file.path for file in shards if file.split == name] for name in version.definition.split}
    assert version.plan is not None
    pictures = ",".join(file_names.EXTENSIONS[name] for name in version.plan.counted.formats)
    sample = {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": pictures, "caption": "txt"},
    }
    told: dict[str, Any] = {  # JSON is YAML, too
        ".info.json": {"shard_counts": {file.path: file.images for file in shards}},
        "split.yaml": {"split_parts": {name: paths for name, paths in parts.items() if paths}, "exclude": []},
        "dataset.yaml": sample,
    }
    files = []
    for name, content in told.items():
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
            files.append(writer.put(f".nv-meta/{name}", file, "application/json", 0))
    return files


def _card(version: Version, jobs: Sequence[JobState], shards: dict[str, list[str]]) -> str:
    assert version.plan is not None
    counted, name = version.plan.counted, version.dataset.name
    models = ", ".join(sorted(set(counted.models.values()))) or "a model"
    head = [f"pretty_name: {json.dumps(name)}", "tags:", "- synthetic", "- presswork", "task_categories:"]
    head += ["- text-to-image", "size_categories:", f"- {_size(counted.images)}"]
    if links := sorted({one.link or one.name for one in counted.licenses.values()}):
        head += [
            "license: other",
            f"license_name: {json.dumps('; '.join(sorted(x.name for x in counted.licenses.values())))}",
        ]
        head += [f"license_link: {json.dumps(links[0])}"]
    head += ["configs:", "- config_name: default", "  data_files:"]
    for split, paths in shards.items():
        head += [f"  - split: {split}", "    path:", *(f"    - '{path}'" for path in paths)]
    if version.format == "webdataset" and counted.formats:
        head += ["dataset_info:", "  features:", *readme.features(counted.formats)]
    body = [
        f"# {name}, version {version.number}", "",
        f"{counted.images:,} pictures, drawn from prompts by {models}, with Presswork.",
        "`datasets.load_dataset` reads this folder by its path; `sha256sum -c SHA256SUMS` checks it.", "",
        "| split | shards | pictures |", "|---|---|---|",
        *(f"| {split} | {count:,} | {images:,} |" for split, (count, images) in counted.splits.items()), "",
        "## Where the prompts are from", "", "| job | labels | status | pictures |", "|---|---|---|---|",
        *(_row(job) for job in jobs if job.images), "",
        "## How it was made", "", *_made(version, jobs),
    ]  # fmt: skip
    return "\n".join(["---", *head, "---", *body, *readme.licenses(counted.licenses), ""])


def _row(job: JobState) -> str:
    labels = _plain(", ".join(f"{name}: {value}" for name, value in sorted(job.labels.items())))
    retried = f" (a retry of {_parent(job)})" if _parent(job) else ""
    return f"| {ids.public_job(job.job_id)}{retried} | {labels} | {job.state} | {job.images:,} |"


def _plain(words: str) -> str:
    """As one cell of a table: what could be markup or end the cell is written by its number."""
    return "".join(f"&#{ord(one)};" if one in _MARKUP else one for one in " ".join(words.split()))


def _made(version: Version, jobs: Sequence[JobState]) -> list[str]:
    assert version.plan is not None
    filters = version.definition.filters.model_dump(mode="json", exclude_none=True)
    told = ", ".join(f"{name}: {json.dumps(value)}" for name, value in filters.items() if value not in ([], None))
    shares = ", ".join(f"{name} {share:g}" for name, share in version.definition.split.items())
    lines = [
        f"- Taken are done pictures with {told}.",
        f"- The split ({shares}) goes by the hash of a request's custom_id, or else of its prompt: the pictures of a",
        "  request stand together.",
        "- A picture that was rendered again after it failed stands in place of the failed one, once.",
        "- Each picture's record holds its prompt, seed, model, class and sha256, by which it can be drawn again.",
    ]
    if version.base:
        lines.append(
            f"- It was made from version {version.base}; {version.plan.rewritten:,} shards were written again."
        )
    if any(job.state not in states.FINAL_JOB_STATES for job in jobs):
        lines.append("- Jobs were still being rendered when it was made.")
    return lines


def _size(images: int) -> str:
    return next((name for limit, name in _SIZES if images < limit), "n>10M")
