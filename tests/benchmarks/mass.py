"""A mass of finished images, made by the database itself: weeks of jobs in the partitions that the schema makes.

The rows are those that submissions and settlements leave. Indexes of a partition are built when its rows are there,
because a random key is slow to insert into an index that does not fit into memory.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from services.core.model import ids
from tests.factories import REVISION

PARENTS = ("images", "payloads", "results")
JOB = 100_000  # images of a finished job
_PROMPT = "a red ceramic mug on a wooden table, soft light from the left, catalogue photograph, number "
_JOB_ID = "{low} + ({step} * (1 + i / {job}))"
_ROWS = {
    "images": f"(job_id, index, segment_id, state) SELECT {_JOB_ID}, i % {{job}}, 0, 2 "
    "FROM generate_series(0, {n} - 1) i",
    "payloads": "(job_id, index, n, segment_id, seed, guidance_scale, output_format, custom_id, prompt, "
    "negative_prompt) "
    f"SELECT {_JOB_ID}, i % {{job}}, {{each}}, 0, i, 7.5, 'png', 'item-' || i, '{_PROMPT}' || i, '' "
    "FROM generate_series(0, {n} - 1, {each}) i",
    "results": "(job_id, index, bytes, claim_id, finished_at, render_seconds, truncated, sha256, object_key, device, "
    "reproducibility_class, engine_id, flagged, render_key, phash) "
    f"SELECT {_JOB_ID}, i % {{job}}, 400000 + i % 99991, {_JOB_ID} + i / 256, {{at}}, 0.7, false, digest, "
    "'3f/1/job_0d5kx3v9q2m1c/' || lpad((i % {job})::text, 8, '0') || '-' || "
    "encode(substr(digest, 1, 8), 'hex') || '.png', "
    "'gpu-node-07 NVIDIA H200 #3', 'deci-4f2a9c01b7de/torch/fp16/NVIDIA H200/64', 1, false, digest, i * 7919::bigint "
    "FROM generate_series(0, {n} - 1) i CROSS JOIN LATERAL (SELECT sha256(int8send({low} + i)) AS digest OFFSET 0) d",
}  # fmt: skip
_JOBS = """
WITH made AS (
  INSERT INTO jobs (id, tenant_id, state, priority, total, requests, created_at, started_at, finished_at, opened_at)
  SELECT {low} + {step} * j, 1, 'completed', 1, {job}, {job} / {each}, {at}, {at}, {at}, {at}
  FROM generate_series(1, {jobs}) j RETURNING id
), counted AS (
  INSERT INTO counters (job_id, queued, done, folded_at, bytes)
  SELECT id, 0, {job}, {at}, {job} * 450000::bigint FROM made
)
INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority, open, low, high)
SELECT id, 0, 1, {revision}, 512, 512, 10, true, 1, true, {job}, {job} - 1 FROM made
"""


@dataclass(frozen=True, slots=True)
class Week:
    """One week of the mass: its Monday, the bounds of its jobs' ids, and its jobs."""

    monday: datetime
    jobs: tuple[int, ...]

    @property
    def low(self) -> int:
        return ids.floor(self.monday)

    def leaf(self, parent: str) -> str:
        return f"{parent}_{self.monday:%Y%m%d}"


def this_week() -> Week:
    """Its jobs are not the mass's."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Week(today - timedelta(days=today.weekday()), ())


def weeks(finished: int, count: int, *, job: int = JOB) -> list[Week]:
    """`count` weeks that are over for two weeks or longer, the oldest first, with the same number of jobs of `job`
    images each."""
    monday, jobs = this_week().monday, max(1, finished // job // count)
    step = _step(jobs)
    found = []
    for back in range(count + 1, 1, -1):
        begin = monday - timedelta(weeks=back)
        found.append(Week(begin, tuple(ids.floor(begin) + step * nth for nth in range(1, jobs + 1))))
    return found


def fill(database: psycopg.Connection[Any], week: Week, *, each: int, job: int = JOB) -> Iterator[tuple[str, float]]:
    """Makes the week's jobs of `job` images, and its partitions with `each` images a request. Yields each table with
    its seconds."""
    step = _step(len(week.jobs))
    values = {
        "low": sql.Literal(week.low), "step": sql.Literal(step), "job": sql.Literal(job), "each": sql.Literal(each),
        "n": sql.Literal(job * len(week.jobs)), "jobs": sql.Literal(len(week.jobs)),
        "at": sql.Literal(week.monday + timedelta(days=3)), "revision": sql.Literal(REVISION),
    }  # fmt: skip
    database.execute(sql.SQL(_JOBS).format(**values))
    database.execute("SELECT presswork_make_partitions(%s, 1)", (week.monday.date(),))
    for parent in PARENTS:
        began = time.monotonic()
        with detached(database, parent, week.leaf(parent)):
            leaf = sql.Identifier(week.leaf(parent))
            database.execute(sql.SQL("INSERT INTO {} ").format(leaf) + sql.SQL(_ROWS[parent]).format(**values))
        yield parent, time.monotonic() - began


class detached:  # noqa: N801  used as a function
    """The partition `leaf` as a table without indexes; at the end it is a partition with all of them again."""

    def __init__(self, database: psycopg.Connection[Any], parent: str, leaf: str) -> None:
        self._database = database
        self._parent, self._leaf = sql.Identifier(parent), sql.Identifier(leaf)

    def __enter__(self) -> None:
        run, names = self._database.execute, (self._parent, self._leaf)
        text = self._leaf.as_string(self._database)
        row = run("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = %s::regclass", (text,)).fetchone()
        assert row is not None
        self._bounds = sql.SQL(row[0])
        run(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(*names))
        keys = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'"
        for (name,) in run(keys, (text,)).fetchall():
            run(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(self._leaf, sql.Identifier(name)))
        for (name,) in run("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass", (text,)):
            run(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))

    def __exit__(self, *_: object) -> None:
        attach = sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(self._parent, self._leaf, self._bounds)
        self._database.execute(attach)


def sizes(database: psycopg.Connection[Any], of: list[Week], rows: dict[str, int]) -> dict[str, float]:
    """Bytes a row of each table and each of its indexes in those weeks."""
    found = {}
    for parent in PARENTS:
        leaves = [week.leaf(parent) for week in of]
        heap = "SELECT sum(pg_table_size(name::regclass)) FROM unnest(%s::text[]) AS name"
        found[parent] = _one(database, heap, leaves) / rows[parent]
        indexes = database.execute(
            "SELECT p.relname, sum(pg_relation_size(i.indexrelid))::bigint FROM unnest(%s::text[]) AS name "
            "JOIN pg_index i ON i.indrelid = name::regclass JOIN pg_inherits h ON h.inhrelid = i.indexrelid "
            "JOIN pg_class p ON p.oid = h.inhparent GROUP BY 1 ORDER BY 1",
            (leaves,),
        )
        found |= {f"  {name}": size / rows[parent] for name, size in indexes}
    return found


def _one(database: psycopg.Connection[Any], query: str, value: object) -> float:
    row = database.execute(query, (value,)).fetchone()
    assert row is not None
    return float(row[0])


def _step(jobs: int) -> int:
    return (7 * 86_400_000 << ids.RANDOM_BITS) // (jobs + 1)
