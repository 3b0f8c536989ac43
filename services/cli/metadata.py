"""What `presswork download` writes beside the images: records.jsonl, metadata.parquet with declared types, README.md.

`load_dataset` reads metadata.parquet. From JSON it would guess types, and turn names like 2024-01-01 into times. So the
lines have a name that it does not look for. The table is made of the lines once they are all there: only then the types
of the images' metadata are known.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args, get_type_hints

from presswork_client import Image
from services.cli.exits import Usage
from services.core.model import metadata_types, strict_json
from services.core.model.errors import PressworkError
from services.core.model.file_names import PART
from services.core.model.metadata_types import Kind
from services.core.model.requests import metadata_text

RECORDS, TABLE, README = "records.jsonl", "metadata.parquet", "README.md"
_ROWS = 5_000  # in memory
_NOT_OF_A_FILE = {"url", "status", "error"}
_RENAMED = {"image": "input_image"}  # a loader puts the picture itself into the column `image`
_README = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - metadata.parquet
    - '*.png'
    - '*.jpg'
    - '*.webp'
---
# Images of {job}

`datasets.load_dataset` reads this folder, with the types of metadata.parquet. records.jsonl holds the same, one image a
line. Both name each file and its sha256.
"""


def claim_folder(folder: Path, job: str) -> None:
    """Makes the folder and marks it as this job's. Raises Usage if another job's images or another README are in it,
    because files of the same name would be replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    readme, words = folder / README, _README.format(job=job)
    if readme.exists():
        if readme.read_text(encoding="utf-8", errors="replace") != words:
            raise Usage(f"{folder} holds something other than the images of {job}; name another folder with --output.")
        return
    readme.write_text(words, encoding="utf-8", newline="\n")


def facts(job: str, image: Image, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """The fields of an image in both files."""
    rest = {_RENAMED.get(name, name): value for name, value in image.items() if name not in _NOT_OF_A_FILE}
    words = {"prompt": prompt, "negative_prompt": negative_prompt}
    return {"job_id": job, "index": image["index"], **words, **rest}


def listed(folder: Path) -> Iterator[tuple[int, str]]:
    """Index and file name of each image that the folder's records describe."""
    with (folder / RECORDS).open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            yield entry["index"], entry["file_name"]


class Metadata:
    """Writes both files; they get their names once they are complete. A context manager."""

    def __init__(self, folder: Path) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise PressworkError("The table of a download needs pyarrow: pip install 'presswork[cli]'.") from None
        self._pa, self._parquet, self._folder = pa, parquet, folder
        self._lines = _part(folder, RECORDS).open("w", encoding="utf-8", newline="\n")
        self._kinds: dict[str, Kind] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if kind is not None:
            return
        self._write_table()
        for name in (RECORDS, TABLE):
            _part(self._folder, name).replace(self._folder / name)
        # Of the release before; a loader refuses a folder with both.
        (self._folder / "metadata.jsonl").unlink(missing_ok=True)

    def add(self, file_name: str, facts: Mapping[str, Any]) -> None:
        self._lines.write(strict_json.line({"file_name": file_name, **facts}))
        metadata_types.collect(self._kinds, facts["metadata"])

    def _write_table(self) -> None:
        kinds = metadata_types.columns(self._kinds)
        schema = _schema(self._pa, kinds)
        with (
            _part(self._folder, RECORDS).open(encoding="utf-8") as lines,
            self._parquet.ParquetWriter(_part(self._folder, TABLE), schema, compression="zstd") as table,
        ):
            while rows := [_row(json.loads(line), kinds) for line in islice(lines, _ROWS)]:
                table.write_table(self._pa.Table.from_pylist(rows, schema))


def _row(facts: dict[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    texts = {
        "metadata": metadata_text(facts["metadata"]),
        "scores": json.dumps(facts["scores"] or {}, sort_keys=True),
    }
    return facts | texts | metadata_types.cells(kinds, facts["metadata"])


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}{PART}"


def _schema(pa: Any, kinds: Mapping[str, Kind]) -> Any:
    """The types as the client declares them, so that a column has one whatever its values are."""
    types = {int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
    texts = ("file_name", "job_id", "prompt", "negative_prompt")
    fields = {name: pa.string() for name in texts}
    for name, kind in get_type_hints(Image).items():
        if name not in _NOT_OF_A_FILE:
            among = {kind, *get_args(kind)}
            is_list = list[str] in among
            found = next((types[one] for one in (bool, int, float) if one in among), pa.string())
            fields[_RENAMED.get(name, name)] = pa.list_(pa.string()) if is_list else found
    return pa.schema([*fields.items(), *metadata_types.pyarrow_fields(kinds, pa)])
