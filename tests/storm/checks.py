"""What must be true when the storm is over."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import text

from services.core.db.database import Database
from services.core.model import ids
from services.core.model.states import ImageState
from services.core.storage import members
from services.core.storage.s3 import S3Store
from tests.storm.clients import SPECS


@dataclass(frozen=True)
class Found:
    images: int
    lost: int  # images of accepted jobs that have no final state, or no row
    twice: int  # images with a second result, or objects that two images share
    wrong: int  # whose bytes are not those recorded, or not those of another rendering of the same spec
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
    again = {row.place: bytes(row.sha256) for row in drawn}
    assert len(again) == SPECS
    places = {(row.job_id, row.place) for row in rows}
    return Found(
        images=images,
        lost=images - done - failed + abs(len(places) - done),
        twice=len(rows) - len(places) + len(rows) - len({row.object_key for row in rows}),
        wrong=_unlike(store, rows) + sum(bytes(row.sha256) != again[row.place % SPECS] for row in rows),
        failed=failed - len(jobs),
        leases_lost=sum(row.lost for row in states),
        in_shards=sum(members.object_of(row.object_key) != row.object_key for row in rows),
    )


def _unlike(store: S3Store, rows: Sequence[object]) -> int:
    """How many images have other bytes than are recorded."""

    def is_unlike(row: object) -> bool:
        return hashlib.sha256(store.read(row.object_key)).digest() != bytes(row.sha256)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(is_unlike, rows))


_STATES = text("""
SELECT state, count(*) AS n, sum(lost) AS lost FROM images WHERE job_id = ANY(CAST(:jobs AS bigint[])) GROUP BY state
""")
_RESULTS = text("""
SELECT job_id, index AS place, object_key, sha256 FROM results WHERE job_id = ANY(CAST(:jobs AS bigint[]))
ORDER BY job_id, index
""")
