"""Uploads the pictures that `--image` and the column `image` name as files of this machine."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from presswork_client import Client, Matrix
from services.cli.exits import Usage
from services.core.items.reading import Row
from services.core.model import strict_json, templates
from services.core.model.errors import Problem

_NAMED = (b'"image":', b'"image" :')
_SOME = "file-0000000000000"  # an id that nothing has
_IDS = ("file-", "job_", "data:")  # how the server's own names begin


class Pictures:
    """Each picture is uploaded once; without a client none is, as a dry run wants it. Relative paths in rows begin at
    `folder`."""

    def __init__(self, client: Client | None, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._uploaded: dict[Path, str] = {}

    def of_option(self, named: str) -> str:
        """What `--image` means to the server. Raises Usage if it is neither an id nor a file here."""
        if named.startswith(_IDS):
            return named
        path = Path(named)
        if not path.is_file():
            raise Usage(f"--image is {named!r}; it must be a file, or the id of a file or of an earlier image.")
        return self._upload(path)

    def of_matrix(self, matrix: Matrix) -> Matrix:
        """The matrix, with ids in the place of files among the images that vary. Raises Usage.

        A template that uses the name gives it another meaning: its values are words.
        """
        vary: dict[str, Any] = dict(matrix["vary"])
        texts = (matrix.get("template"), matrix.get("negative_template"))
        is_word = any("image" in templates.names(text) for text in texts if isinstance(text, str))
        if isinstance(named := vary.get("image"), list) and not is_word:
            vary["image"] = [self.of_option(one) if isinstance(one, str) else one for one in named]
        return {**matrix, "vary": vary}

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, with ids in the place of paths."""
        for row in rows:
            yield self._row(row) if any(name in row.line for name in _NAMED) else row

    def _row(self, row: Row) -> Row:
        try:
            value: Any = strict_json.loads(row.line)
        except strict_json.BadJson:  # the server reports it
            return row
        named = value.get("image") if isinstance(value, dict) else None
        if not isinstance(named, str) or named.startswith(_IDS) or "://" in named:
            return row
        path = self._folder / named
        if not path.is_file():
            message = f"image is {strict_json.describe(named)}; there is no such file in {self._folder}."
            return replace(row, line=b"", problem=Problem("image_not_found", message, "image", row.place))
        value["image"] = self._upload(path)
        return replace(row, line=json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

    def _upload(self, path: Path) -> str:
        path = path.resolve()
        if self._client is None:
            return _SOME
        if path not in self._uploaded:
            self._uploaded[path] = self._client.upload(path, purpose="vision")["id"]
        return self._uploaded[path]
