"""Prepares a run: takes the source, plans against the published version, and records what differs.

Nothing but the plan itself is written before the commit that moves the run on, so a plan that a crash cut off is made
again. Without a usable source the run fails with one report, and nothing changes for readers.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from services.core.catalogues import (
    catalogue_runs as runs,
)
from services.core.catalogues import (
    catalogues,
    changes,
    expansion,
    lists,
    planning,
    rendering,
    sources,
    version_list,
    versions,
)
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.catalogues.definition import Definition
from services.core.catalogues.expansion import Compiled
from services.core.catalogues.list_writer import Plan
from services.core.catalogues.photograph_fetching import Photographs
from services.core.catalogues.planning import BadSource, TooSlow
from services.core.catalogues.sources import SourceFailed, Taken, Uploaded
from services.core.catalogues.version_list import BadList, Entry
from services.core.catalogues.versions import Version
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.files import files
from services.core.fleet import models
from services.core.model import ids, requests
from services.core.model.errors import NoModels, NotFound, Problem, Unavailable
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

_AT_ONCE = 2_000
_PATIENCE = timedelta(minutes=15)  # with a source whose server is away
_KEEP_ITEMS = 500
_LOOK_SECONDS = 2.0  # between two looks at whether the run is still wanted
_ALL_PROBLEMS = 1 << 30
_PLAN_SECONDS = 3_600.0
_FETCHING_SECONDS = 6 * 3_600.0  # where a plan asks for photographs


class SourceAway(Unavailable):
    """The source cannot be taken right now."""


class Cancelled(Exception):
    """Nobody wants the run any more."""


class Stopping(Exception):
    """This scheduler ends; whoever has the lease next makes the plan again."""


class Refused(Exception):
    """The run cannot be planned: a code, a sentence, and what is wrong with which rows."""

    def __init__(self, code: str, message: str, problems: Sequence[Problem] = ()) -> None:
        self.code, self.message, self.problems = code, message, problems
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run has to do. `source` describes what was read; `doubt` says why a person should decide. `job_id`: that
    of the job which renders it, if photographs were kept for it. `had_broken`: of the version that it is compared with,
    pictures are marked as stale because their items had a problem. `list_key`: where the list of its pictures lies."""

    counts: Mapping[str, int]
    source: dict[str, Any]
    base: int
    doubt: str = ""
    job_id: int | None = None
    had_broken: bool = False
    list_key: str | None = None


def prepare(settings: Settings, store: ImageStore, catalogue: Catalogue, run: Run, lease: Lease) -> None:
    """Plans the run and moves it on.

    Raises:
        NoModels: no worker has registered a model yet.
        SourceAway: the source may be there later.
        Cancelled, Stopping: while it was planned, that was asked for.
    """
    try:
        planned = _Preparation(settings, store, catalogue, run, lease).plan()
    except Refused as error:
        listed = [{"code": one.code, "message": one.message, "line": one.line} for one in error.problems]
        with lease.begin() as connection:
            runs.plan(connection, run, base=run.base, version=None, job_id=None, source={"problems": listed})
            runs.move(connection, run, "failed", error={"code": error.code, "message": error.message})
    else:
        decide(catalogue, run, planned, lease)


def decide(catalogue: Catalogue, run: Run, planned: Planned, lease: Lease) -> None:
    """Moves the planned run on: it has ended, or there is something to render or to write."""
    found = {kind: planned.counts.get(kind, 0) for kind in (*get_args(changes.Kind), "unchanged")}
    doubt = "" if run.accept_removed else planned.doubt
    to = _next_state(run, found, doubt, had_broken=planned.had_broken)
    version = job_id = None
    with lease.begin() as connection:
        if to in ("submitting", "writing"):
            version = catalogues.begin_version(connection, catalogue.id)
        if to == "submitting":
            job_id = planned.job_id or ids.new()
            rendering.create(connection, catalogue, run, job_id)
        runs.plan(
            connection, run, base=planned.base, version=version, job_id=job_id, source=planned.source,
            list_key=planned.list_key,
        )  # fmt: skip
        error = {"code": "too_many_removed", "message": doubt} if doubt else None
        runs.move(connection, run, to, counts=found, error=error, causes=changes.causes(connection, run.id))


def record(run: Run, differences: Iterable[Change], lease: Lease) -> Counter[str]:
    """Records what differs, in place of what an earlier attempt recorded. Returns how many there are of each kind."""
    more = True
    while more:
        with lease.begin() as connection:
            more = changes.forget(connection, run.id, most=5_000)
    counts = Counter[str]()
    rendered, aside = _Page(run, 0, lease), _Page(run, changes.ASIDE, lease)
    for change in differences:
        counts[change.kind] += 1
        (rendered if change.kind in changes.RENDERED else aside).add(change)
    rendered.flush()
    aside.flush()
    return counts


class _Preparation:
    """One attempt at a plan."""

    def __init__(self, settings: Settings, store: ImageStore, catalogue: Catalogue, run: Run, lease: Lease) -> None:
        self._settings, self._store, self._lease = settings, store, lease
        self._catalogue, self._run = catalogue, run
        self._definition = Definition.model_validate(run.definition)
        self._looked_at = time.monotonic()

    def plan(self) -> Planned:
        with self._lease.begin() as connection:
            known = models.registry(connection)
            current, _ = catalogues.read(connection, self._catalogue.id)
            base = versions.find(connection, current.id, current.published) if current.published else None
            base_run = runs.read(connection, base.run_id) if base else None
            uploaded = self._uploaded(connection)
        if not known:
            raise NoModels
        variants, problems = expansion.compile_variants(
            self._catalogue.name, self._definition, known, self._settings.model
        )
        if problems:
            raise Refused(problems[0].code, problems[0].message, problems)
        revisions = sorted({one.shape.model_revision for one in variants})
        with tempfile.TemporaryDirectory(prefix="presswork-") as folder:
            path = Path(folder) / "source"
            before = None if _has_photographs(variants) else _taken_before(base_run, self._run, revisions)
            taken = self._take(path, uploaded, before)
            if taken is None:
                assert base is not None
                assert base_run is not None
                return Planned({"unchanged": base.images}, base_run.source, base.version)
            source = _described(taken, revisions)
            job_id = None if self._run.plan_only else ids.new()
            plan = self._made(path, Path(folder), variants, base, taken, job_id)
            counts = record(self._run, _differences(plan.path, variants, job_id), self._lease)
            had_broken = base_run is not None and bool(base_run.counts.get("broken"))
            list_key = None
            if (counts or had_broken) and not self._run.plan_only:  # only a version that is made needs it
                list_key = lists.put(self._store, self._catalogue, self._run.id, plan.path, self._lease.keep)
                crash_point("catalogue.listed")
            counts["unchanged"] = plan.pictures.get(version_list.UNCHANGED, 0)
            return Planned(
                counts, source | {"items": plan.items}, base.version if base else 0, plan.doubt, job_id, had_broken,
                list_key,
            )  # fmt: skip

    def _uploaded(self, connection: Any) -> Uploaded | None:
        if self._definition.source.file is None or self._run.file_id is None:
            return None
        try:
            file = files.find(connection, self._catalogue.tenant_id, self._run.file_id)
        except NotFound:
            raise Refused("file_gone", "The uploaded file has been deleted; upload it again.") from None
        return Uploaded(file.object_key, file.filename)

    def _take(self, path: Path, uploaded: Uploaded | None, before: Taken | None) -> Taken | None:
        self._lease.keep()
        try:
            return sources.take(
                self._definition.source, path, settings=self._settings, store=self._store, uploaded=uploaded,
                before=before,
            )  # fmt: skip
        except SourceFailed as error:
            if error.again and datetime.now(UTC) - self._run.created_at < _PATIENCE:
                raise SourceAway(str(error)) from None
            raise Refused(error.code, str(error)) from None

    def _made(
        self, path: Path, folder: Path, variants: Sequence[Compiled], base: Version | None, taken: Taken,
        job_id: int | None,
    ) -> Plan:  # fmt: skip
        previous = find = None
        if base is not None:
            previous = folder / "previous.sqlite"
            lists.fetch(self._store, base.manifests[lists.NAME].object_key, previous, self._lease.keep)
        wanted = expansion.fields(self._definition, variants)
        try:
            with ExitStack() as open_ones:
                items, unit = open_ones.enter_context(sources.items(self._definition.source, path, taken.title, wanted))
                if _has_photographs(variants):
                    photographs = Photographs(
                        self._settings, self._store, self._lease, self._catalogue.tenant_id, job_id, self._watch
                    )
                    find = open_ones.enter_context(photographs).find
                return planning.make(
                    self._definition, variants, self._kept(items), unit=unit, previous=previous,
                    path=folder / "list.sqlite", find=find, seconds=_FETCHING_SECONDS if find else _PLAN_SECONDS,
                )  # fmt: skip
        except BadSource as error:
            raise Refused("bad_source", str(error), error.problems) from None
        except SourceFailed as error:
            raise Refused(error.code, str(error)) from None
        except (TooSlow, BadList) as error:
            raise Refused("plan_failed", str(error)) from None

    def _kept(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items; the lease is kept on the way."""
        for number, item in enumerate(items):
            if not number % _KEEP_ITEMS:
                self._watch()
            yield item

    def _watch(self) -> None:
        """Keeps the lease. Raises Cancelled or Stopping."""
        if self._lease.stopping.is_set():
            raise Stopping
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            self._lease.keep()
            return
        with self._lease.begin() as connection:
            run = runs.read(connection, self._run.id)
            _, is_deleted = catalogues.read(connection, self._catalogue.id)
        if is_deleted or run.cancel_requested_at is not None:
            raise Cancelled
        self._looked_at = time.monotonic()


class _Page:
    """Changes on their way into the database, at positions from `first` on."""

    def __init__(self, run: Run, first: int, lease: Lease) -> None:
        self._run, self._first, self._lease = run, first, lease
        self._waiting: list[Change] = []

    def add(self, change: Change) -> None:
        self._waiting.append(change)
        if len(self._waiting) == _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            with self._lease.begin() as connection:
                changes.add(connection, self._run.id, self._first, self._waiting)
            self._first += len(self._waiting)
            self._waiting.clear()


def _next_state(run: Run, found: Mapping[str, int], doubt: str, *, had_broken: bool) -> str:
    if run.plan_only:
        return "planned"
    if doubt:
        return "kept"
    if any(found[kind] for kind in changes.RENDERED):
        return "submitting"
    return "writing" if found["broken"] or found["removed"] or had_broken else "unchanged"


def _has_photographs(variants: Sequence[Compiled]) -> bool:
    return any(one.image is not None for one in variants)


def _differences(path: Path, variants: Sequence[Compiled], job_id: int | None) -> Iterator[Change]:
    """`job_id` as in Planned; None: nothing will be rendered."""
    by_name = {one.name: one for one in variants}
    for entry in version_list.entries(path, *version_list.RENDERED):
        if entry.input_sha256 and not entry.image and job_id is not None:  # it would be drawn without its photograph
            raise Refused("plan_failed", f"The photograph of {entry.item} is not at hand; begin another run.")
        kind: Any = entry.change
        yield Change(
            entry.item, entry.variant, kind, line=entry.place, render_key=entry.render_key,
            request=_request(entry, by_name[entry.variant]), model_revision=entry.shape.model_revision,
            redraws=entry.redraws,
        )  # fmt: skip
    for problem in version_list.problems(path, _ALL_PROBLEMS):
        yield Change(
            problem.item, problem.variant, "broken", line=problem.place, code=problem.code, message=problem.message
        )
    for item, variant in version_list.removed(path):
        yield Change(item, variant, "removed")


def _request(entry: Entry, variant: Compiled) -> dict[str, Any]:
    """What is submitted for an entry."""
    asked, name = entry.request | {"model": variant.model}, f"{entry.item}.{entry.variant}"
    if entry.image and variant.strength is not None:
        asked["strength"] = variant.strength
    if variant.reproducibility_class:
        asked["reproducibility_class"] = variant.reproducibility_class
    return asked | ({"custom_id": name} if requests.is_custom_id(name) else {})


def _taken_before(base_run: Run | None, run: Run, revisions: list[str]) -> Taken | None:
    """The source that made the base, if the same source would make the same pictures."""
    if base_run is None or base_run.definition != run.definition or base_run.source.get("revisions") != revisions:
        return None
    if any(base_run.counts.get(name, 0) for name in ("failed", "rejected", "broken")):
        return None
    found = base_run.source
    return Taken(found["title"], found["bytes"], bytes.fromhex(found["sha256"]), found["etag"], found["modified"])


def _described(taken: Taken, revisions: list[str]) -> dict[str, Any]:
    return {
        "title": taken.title, "bytes": taken.size, "sha256": taken.sha256.hex(), "etag": taken.etag,
        "modified": taken.modified, "revisions": revisions,
    }  # fmt: skip
