"""The names of image files, in downloads and exports: after the custom_id where that is safe, else after the index;
and the header that gives a download its name.

No name is another one's on any file system: they are ASCII, differ in more than case, are valid on Linux, macOS,
Windows and FAT, and have at most 255 bytes with `.part` added. Nor does a loader of data sets take a part of a name for
a split ("test", "train") or for a second extension (".csv"): a `~`, which no custom_id has, follows the one and takes
the place of dots.
"""

import re
from collections.abc import Collection

EXTENSIONS: dict[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_FORMATS = {extension: name for name, extension in EXTENSIONS.items()}
PART = ".part"  # added to a file's name while it is being written
_SAFE = re.compile(
    r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$))[a-z0-9_](?:[a-z0-9._-]{0,126}[a-z0-9_-])?",
    re.ASCII | re.IGNORECASE,
)
_UNUSUAL = re.compile(r"[^A-Za-z0-9._~-]")
_SPLIT = re.compile(
    r"(?:^|(?<=[-._ 0-9]))(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?=[-._ 0-9]|$)"
)
_USUAL_SPLITS = ({"train", "validation", "test"}, {"train", "val", "test"})


def media_type(name: str) -> str:
    """Of a picture, by its name."""
    return f"image/{_FORMATS[name.rpartition('.')[2]]}"


def stem(custom_id: str | None) -> str | None:
    """The custom_id as the beginning of a file's name; None if it is not safe as one."""
    if custom_id is None or not _SAFE.fullmatch(custom_id):
        return None
    return _SPLIT.sub(r"\1~", custom_id.replace(".", "~"))


def with_index(custom_id: str | None, index: int, output_format: str) -> str:
    """A name that is unique within its job, because it ends in the index."""
    number = f"{index:08d}.{EXTENSIONS[output_format]}"
    begin = stem(custom_id)
    return number if begin is None else f"{begin}-{number}"


def attachment(name: str) -> str:
    """The Content-Disposition of a download of that name, whatever characters it has."""
    return f'attachment; filename="{_UNUSUAL.sub("_", name)}"'


def split_folder(split: str, splits: Collection[str]) -> str:
    """The folder of a split among `splits`. A loader that goes by the names of folders reads each usual split, or, if
    there are others, all images as one; it leaves none out."""
    usual = any(names.issuperset(splits) for names in _USUAL_SPLITS)
    return split if usual else _SPLIT.sub(r"\1~", split)


class UniqueNames:
    """Names the images of one job, in order of their indexes: ID, or ID~0, ID~1, ... if a request has several, else by
    index. A name that was given already, whatever its case, gets the index too."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._taken: set[int] = set()  # hashes

    def of(self, custom_id: str | None, place: int, n: int, index: int, output_format: str) -> str:
        """The name of the image at `place` of a request with `n` images."""
        begin = stem(custom_id) if self._by == "custom_id" else None
        name = f"{index:06d}" if begin is None else f"{begin}~{place}" if n > 1 else begin
        key = hash(name.lower())
        if key in self._taken:
            name = f"{begin or name}~{index:06d}"  # no place has six digits
        else:
            self._taken.add(key)
        return f"{name}.{EXTENSIONS[output_format]}"
