"""The input pictures of a submission: finds those that requests name, and keeps those that came with the requests.

A picture is a file of purpose `vision`, an earlier image of the same tenant, or a data URL, which becomes such a file:
its object is stored at once, its row in the transaction that records the job. That transaction also records in
`job_inputs` what the job needs, so that it is not deleted before the job has ended.
"""

import base64
import hashlib
import io
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db.columns import Input
from services.core.db.statements import statement
from services.core.files import files, pictures
from services.core.files.pictures import InvalidPicture
from services.core.model import ids
from services.core.model.errors import InvalidSubmission, NotFound, Problem, StoreUnavailable
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

MOST = 100_000  # different pictures in one submission
PURPOSE = "vision"
MISSING = 'must be a file of purpose "vision", or an image that is done, of your own'  # what is said of one that is not

_IMAGES = statement("inputs.images")("""
SELECT r.job_id, r.index AS place, r.object_key, r.sha256
FROM unnest(CAST(:job_ids AS bigint[]), CAST(:indexes AS integer[])) AS wanted (job_id, index)
JOIN jobs j ON j.id = wanted.job_id AND j.tenant_id = :tenant_id AND j.deleted_at IS NULL
  AND j.objects_deleted_at IS NULL
JOIN results r ON r.job_id = wanted.job_id AND r.index = wanted.index
""")
# Shared locks: nobody deletes them before this transaction ends, and whoever comes after it sees the new rows.
_HOLD_FILES = statement("inputs.hold_files")("""
SELECT id FROM files WHERE tenant_id = :tenant_id AND id = ANY(CAST(:ids AS bigint[])) AND deleted_at IS NULL
ORDER BY id FOR SHARE
""")
_HOLD_JOBS = statement("inputs.hold_jobs")("""
SELECT id FROM jobs WHERE tenant_id = :tenant_id AND id = ANY(CAST(:ids AS bigint[])) AND deleted_at IS NULL
  AND objects_deleted_at IS NULL
ORDER BY id FOR SHARE
""")
_NEED = statement("inputs.need")("""
INSERT INTO job_inputs (job_id, kind, thing, tenant_id)
SELECT :job_id, :kind, thing, :tenant_id FROM unnest(CAST(:ids AS bigint[])) AS thing ON CONFLICT DO NOTHING
""")
_INHERIT = statement("inputs.inherit")("""
INSERT INTO job_inputs (job_id, kind, thing, tenant_id)
SELECT :child, kind, thing, tenant_id FROM job_inputs WHERE job_id = :parent
""")


class Inputs:
    """The pictures of one submission of that tenant. `begin` opens a transaction that sees its rows."""

    def __init__(
        self, settings: Settings, begin: Callable[[], AbstractContextManager[Connection]], store: ImageStore,
        tenant_id: int,
    ) -> None:  # fmt: skip
        self._settings, self._begin, self._store, self._tenant_id = settings, begin, store, tenant_id
        self._known: dict[str, Input] = {}
        self._recorded: list[str] = []  # objects whose rows stand in a transaction that may not be committed yet
        self._kept: dict[bytes, tuple[int, int, str]] = {}  # sha256 -> id, bytes, object of a file without a row
        self._files: set[int] = set()
        self._jobs: set[int] = set()

    def keep(self, data_url: str) -> str:
        """Stores the picture in a data URL; returns the id of its file. Raises InvalidPicture."""
        try:
            return self.keep_bytes(base64.b64decode(data_url.partition(",")[2], validate=True))
        except ValueError:
            raise InvalidPicture("The data URL is not valid base64.") from None

    def keep_bytes(self, data: bytes) -> str:
        """Stores a picture; returns the id of its file. Raises InvalidPicture."""
        sha256 = hashlib.sha256(data).digest()
        if sha256 not in self._kept:
            limits = self._settings.max_input_bytes, self._settings.max_input_pixels
            media_type = pictures.check(io.BytesIO(data), *limits)
            number = ids.new()
            key = self._store.key(files.object_name(self._tenant_id, number))
            self._store.put_file(key, io.BytesIO(data), media_type)
            crash_point("input.stored")
            self._kept[sha256] = number, len(data), key
            self._files.add(number)
            self._known[files.public_id(number)] = Input(files.public_id(number), key, sha256)
        return files.public_id(self._kept[sha256][0])

    def find(self, names: Iterable[str]) -> dict[str, Input]:
        """Those of the named pictures that there are."""
        wanted = {name for name in names if name not in self._known}
        if wanted:
            with self._begin() as connection:
                self._find_files(connection, [name for name in wanted if name.startswith("file-")])
                self._find_images(connection, [name for name in wanted if not name.startswith("file-")])
        return {name: self._known[name] for name in names if name in self._known}

    @property
    def too_many(self) -> bool:
        return len(self._files) + len(self._jobs) > MOST

    def record(self, connection: Connection, job_id: int) -> None:
        """Records the files that were kept, and what the job needs. Raises InvalidSubmission: something was deleted
        since it was found."""
        for sha256, (number, size, key) in self._kept.items():
            files.record(
                connection, number, tenant_id=self._tenant_id, purpose=PURPOSE, filename="picture", size=size,
                sha256=sha256, key=key, job_id=job_id,
            )  # fmt: skip
        self._recorded += [key for _, _, key in self._kept.values()]
        self._kept.clear()
        for kind, hold, needed in (("file", _HOLD_FILES, self._files), ("job", _HOLD_JOBS, self._jobs)):
            if needed:
                values = {"tenant_id": self._tenant_id, "ids": sorted(needed)}
                if len(connection.execute(hold, values).all()) < len(needed):
                    message = "An input picture was deleted in the meantime."
                    raise InvalidSubmission([Problem("image_not_found", message, "image")])
                connection.execute(_NEED, values | {"job_id": job_id, "kind": kind})

    def drop(self, *, undone: bool = False) -> None:
        """Deletes the objects that were kept and not recorded; `undone`: those too whose record was taken back."""
        for key in [*(key for _, _, key in self._kept.values()), *(self._recorded if undone else ())]:
            try:
                self._store.drop(key)
            except StoreUnavailable:  # an object without a row is left over
                return
        self._kept.clear()

    def _find_files(self, connection: Connection, names: list[str]) -> None:
        numbers = [files.parse_id(name) for name in names if _is_id(name)]
        for found in files.of_ids(connection, self._tenant_id, numbers, PURPOSE):
            self._files.add(found.id)
            name = files.public_id(found.id)
            self._known[name] = Input(name, found.object_key, found.sha256)

    def _find_images(self, connection: Connection, names: list[str]) -> None:
        places = {}
        for name in names:
            job, _, index = name.partition("/")
            if _is_id(job) and int(index) < 2**31:
                places[ids.parse_job(job), int(index)] = name
        if not places:
            return
        values = {"job_ids": [job for job, _ in places], "indexes": [index for _, index in places]}
        for row in connection.execute(_IMAGES, values | {"tenant_id": self._tenant_id}):
            self._jobs.add(row.job_id)
            name = places[row.job_id, row.place]
            self._known[name] = Input(name, row.object_key, bytes(row.sha256))


def inherit(connection: Connection, *, parent_id: int, child_id: int) -> None:
    """Lets a job that renders images of its parent again need what that one needed."""
    connection.execute(_INHERIT, {"parent": parent_id, "child": child_id})


def _is_id(public: str) -> bool:
    """Whether letters that look like an id are one."""
    try:
        (files.parse_id if public.startswith("file-") else ids.parse_job)(public)
    except NotFound:
        return False
    return True
