"""What must be true when the storm is over."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from sqlalchemy import Row, text

from services.core.db.database import Database
from services.core.model import ids
from services.core.model.states import ImageState
from services.core.storage import members
from services.core.storage.s3 import S3Store
from tests.storm.clients import SPECS

# The mean difference of two pictures' values, of 0 to 255, up to which they show the same: that of two noisy renderings
# of one spec is below 1.5, that of two specs above 6.
ALIKE = 3.0


@dataclass(frozen=True)
class Found:
    images: int
    lost: int  # images of accepted jobs that have no final state, or no row
    twice: int  # images with a second result, or objects that two images share
    wrong: int  # whose bytes are not those recorded, or that look unlike another rendering of the same spec
    failed: int  # beside the bad prompts
    leases_lost: int
    in_shards: int


def look(database: Database, store: S3Store, jobs: dict[str, int], reference: str) -> Found:
    """`jobs`: the images of each job that was accepted. `reference`: a job of each spec once, rendered afterwards."""
    numbers = {ids.parse_job(job): images for job, images in jobs.items()}
    with database.begin_system() as connection:
        states = connection.execute(_STATES, {"jobs": list(numbers)}).all()
        rows = connection.execute(_RESULTS, {"jobs": list(numbers)}).all()
        drawn = connection.execute(_RESULTS, {"jobs": [ids.parse_job(reference)]}).all()
    done = sum(row.n for row in states if row.state == ImageState.DONE)
    failed = sum(row.n for row in states if row.state == ImageState.FAILED)
    images = sum(numbers.values())
    again = [_pixels(store.read(row.object_key)) for row in drawn]
    assert len(again) == SPECS
    places = {(row.job_id, row.place) for row in rows}
    return Found(
        images=images,
        lost=images - done - failed + abs(len(places) - done),
        twice=len(rows) - len(places) + len(rows) - len({row.object_key for row in rows}),
        wrong=_wrong(store, rows, again),
        failed=failed - len(jobs),
        leases_lost=sum(row.lost for row in states),
        in_shards=sum(members.object_of(row.object_key) != row.object_key for row in rows),
    )


def _wrong(store: S3Store, rows: Sequence[Row[Any]], again: Sequence[NDArray[np.int16]]) -> int:
    """`again`: a picture of each spec."""

    def is_wrong(row: Row[Any]) -> bool:
        data = store.read(row.object_key)
        if hashlib.sha256(data).digest() != bytes(row.sha256):
            return True
        return float(np.abs(_pixels(data) - again[row.place % SPECS]).mean()) > ALIKE

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(is_wrong, rows))


def _pixels(file: bytes) -> NDArray[np.int16]:
    return np.asarray(Picture.open(BytesIO(file)).convert("RGB"), dtype=np.int16)


_STATES = text("""
SELECT state, count(*) AS n, sum(lost) AS lost FROM images WHERE job_id = ANY(CAST(:jobs AS bigint[])) GROUP BY state
""")
_RESULTS = text("""
SELECT job_id, index AS place, object_key, sha256 FROM results WHERE job_id = ANY(CAST(:jobs AS bigint[]))
ORDER BY job_id, index
""")
