"""Datasets: which there are; the page of each with its sources and versions; writing, stopping, deleting versions."""

from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import dependencies, pagination, parameters
from services.api.dependencies import ContextDep
from services.core.datasets import dataset_records, datasets, source_jobs, version_removal
from services.core.datasets.dataset_records import Dataset, Version
from services.core.events import actions
from services.core.model.errors import NotFound
from services.dashboard import access, dataset_words, forms, rendering
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 30
_VERSIONS = 15
_JOBS = 50
_ACTS = 20
_LAST_VERSION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Row:
    """A dataset in the list. `current` is the version that can be read, `newest` the last one, whatever it is."""

    dataset: Dataset
    current: Version | None
    newest: Version | None


@router.get("/datasets")
def show_datasets(request: Request, context: ContextDep, visitor: access.Signed, cursor: str = "") -> Any:
    visitor.require("view")
    listing = f"pages/datasets/{visitor.tenant}"
    after = pagination.decode_name(context.settings.secrets, listing, cursor) if cursor else ""
    with context.database.read(visitor.tenant) as connection:
        found = dataset_records.listed(connection, visitor.tenant, after=after, limit=_PER_PAGE + 1)
        page = found[:_PER_PAGE]
        versions = dataset_records.newest(connection, page)
    more = len(found) > _PER_PAGE and pagination.encode_name(context.settings.secret, listing, page[-1].name)
    return rendering.page(
        request,
        "datasets.html",
        visitor=visitor,
        rows=[Row(one, _current(one, versions[one.id]), next(iter(versions[one.id][-1:]), None)) for one in page],
        is_first=not cursor,
        here="/datasets" + (f"?cursor={cursor}" if cursor else ""),
        next_page=more and f"/datasets?cursor={more}",
    )


@router.get("/datasets/{name}")
def show_dataset(request: Request, context: ContextDep, visitor: access.Signed, name: str, below: str = "") -> Any:
    """`below`: the versions below that number."""
    visitor.require("view")
    highest = int(below) if parameters.is_whole(below, digits=9) else _LAST_VERSION
    with context.database.read(visitor.tenant) as connection:
        found = dataset_records.find(connection, visitor.tenant, name)
        listed = dataset_records.versions(connection, found, before=highest, limit=_VERSIONS + 1)
        newest = dataset_records.newest(connection, [found])[found.id]
        running = source_jobs.are_running(connection, found)
        acts = actions.page(connection, visitor.tenant, limit=_ACTS, job=f"dataset/{name}")
    current = _current(found, newest)
    at_work = next((one for one in newest if one.finished_at is None), None)
    complete = [one.number for one in listed if one.state == "completed"]
    return rendering.page(
        request,
        "dataset.html",
        visitor=visitor,
        dataset=found,
        current=current,
        newest=next(iter(newest[-1:]), None),
        at_work=at_work,
        running=running,
        filters=dataset_words.filters(found.definition.filters),
        jobs=found.definition.jobs[:_JOBS],
        ways=dataset_words.ways(rendering.base(request), found) if current else [],
        versions=listed[:_VERSIONS],
        older=listed[_VERSIONS - 1].number if len(listed) > _VERSIONS else None,
        comparable=len(complete) > 1,
        words=dataset_words,
        acts=[replace(act.event, actor_name=act.name) for act in acts],
        is_first=not below,
        here=f"/datasets/{name}",
    )


@router.get("/datasets/{name}/actions/delete")
def ask_to_delete(request: Request, context: ContextDep, visitor: access.Signed, name: str) -> Any:
    visitor.require("operate", "deleting a dataset")
    with context.database.read(visitor.tenant) as connection:
        found = dataset_records.find(connection, visitor.tenant, name)
    what = f"Its versions up to {found.version} go, with all their files" if found.version else "It has no version"
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title=f"Delete {name}?",
        sentence=f"{what}. Jobs and their pictures stay.",
        refusal="",
        action=f"/datasets/{name}/actions/delete",
        back=f"/datasets/{name}",
        button="Delete",
        choice="",
        danger=True,
    )


@router.get("/datasets/{name}/versions/{version}/actions/{verb}")
def ask_about_version(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, version: str, verb: str
) -> Any:
    """Asks whether to stop a version, or to delete one."""
    if verb not in ("cancel", "delete"):
        raise NotFound("There is no such action.")
    visitor.require("operate", f"to {verb} a version")
    number = parameters.number(version)
    with context.database.read(visitor.tenant) as connection:
        found = dataset_records.version(connection, dataset_records.find(connection, visitor.tenant, name), number)
    sentence = (
        "What was stored for it is deleted, and its number is not given again. The versions before it stay."
        if verb == "cancel"
        else f"{plural(found.images, 'picture')} can no longer be pulled as this version. Files that other "
        "versions hold stay; the others are deleted. Its number is not given again."
    )
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title=f"{'Stop writing' if verb == 'cancel' else 'Delete'} version {number} of {name}?",
        sentence=sentence,
        refusal="",
        action=f"/datasets/{name}/versions/{number}/actions/{verb}",
        back=f"/datasets/{name}",
        button="Stop" if verb == "cancel" else "Delete",
        choice="",
        danger=True,
    )


@router.post("/datasets/{name}/versions/{version}/actions/{verb}")
def act_on_version(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, version: str, verb: str,
    form: forms.Posted,
) -> Any:  # fmt: skip
    if verb not in ("cancel", "delete"):
        raise NotFound("There is no such action.")
    visitor.require("operate", f"to {verb} a version")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    change = datasets.cancel if verb == "cancel" else version_removal.remove
    with context.database.begin(visitor.tenant) as connection:
        change(connection, visitor.tenant, name, parameters.number(version))
    return RedirectResponse(rendering.address(request, f"/datasets/{name}"), 303)


@router.post("/datasets/{name}/actions/{verb}")
def act(request: Request, context: ContextDep, visitor: access.Signed, name: str, verb: str, form: forms.Posted) -> Any:
    """Writes the next version, also of jobs that are being rendered if asked for, or deletes the dataset."""
    if verb not in ("export", "delete"):
        raise NotFound("There is no such action.")
    visitor.require("submit" if verb == "export" else "operate", f"to {verb} a dataset")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    with context.database.begin(visitor.tenant) as connection:
        if verb == "delete":
            datasets.remove(connection, visitor.tenant, name)
        else:
            datasets.export(
                connection, visitor.tenant, name, while_running=form.get("while_running") == "true",
                base_url=dependencies.base_url(context.settings, request),
            )  # fmt: skip
    return RedirectResponse(rendering.address(request, "/datasets" if verb == "delete" else f"/datasets/{name}"), 303)


def _current(dataset: Dataset, some: list[Version]) -> Version | None:
    return next((one for one in some if one.number == dataset.version), None)
