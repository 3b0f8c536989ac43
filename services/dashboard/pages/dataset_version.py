"""One version of a dataset: its splits, files with links, and card; and what two versions differ in."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request

from services.api import pagination, parameters
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.datasets import comparison, dataset_records, source_jobs
from services.core.exports import manifest, readme
from services.core.model import ids
from services.core.model.errors import ObjectMissing
from services.core.storage.contract import ImageStore
from services.dashboard import access, dataset_words, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_FILES = 50
_DIFFERENCES = 96
_OFFERED = 100
_LAST_VERSION = 2**31 - 1
_CARD = 200_000  # characters that are shown


@router.get("/datasets/{name}/versions/{version}")
def show_version(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, version: str, cursor: str = ""
) -> Any:
    visitor.require("view")
    number = parameters.number(version)
    listing = f"pages/dataset_files/{visitor.tenant}/{name}/{number}"
    after = pagination.decode_name(context.settings.secrets, listing, cursor) if cursor else ""
    with context.database.read(visitor.tenant) as connection:
        dataset = dataset_records.find(connection, visitor.tenant, name)
        found = dataset_records.version(connection, dataset, number)
        is_complete, files, told = found.state == "completed", [], {}
        if is_complete:
            of = dataset.id, number
            files = dataset_records.files(connection, *of, after=after, limit=_FILES + 1)
            told = {path: dataset_records.file(connection, *of, path) for path in (readme.README, manifest.MANIFEST)}
    described = told.get(readme.README)
    card = _text(context.store, described.object_key) if described is not None and not cursor else ""
    more = None
    if len(files) > _FILES:
        more = pagination.encode_name(context.settings.secret, listing, files[_FILES - 1].path)
    here = f"/datasets/{name}/versions/{number}"
    return rendering.page(
        request,
        "dataset_version.html",
        visitor=visitor,
        dataset=dataset,
        found=found,
        splits={} if found.plan is None else found.plan.counted.splits,
        files=[(one, _link(context, one)) for one in files[:_FILES]],
        manifest=_link(context, told[manifest.MANIFEST]) if told.get(manifest.MANIFEST) else "",
        card=card,
        ways=dataset_words.ways(rendering.base(request), dataset, found) if is_complete else [],
        words=dataset_words,
        is_first=not cursor,
        here=here,
        next_page=more and f"{here}?cursor={more}#files",
    )


@router.get("/datasets/{name}/diff")
def show_diff(
    request: Request, context: ContextDep, visitor: access.Signed, name: str,
    before: Annotated[str, Query(alias="from")] = "", to: str = "",
) -> Any:  # fmt: skip
    """From one complete version to another; left out: from the one before the last, to that."""
    visitor.require("view")
    asked, wanted = _number(before), _number(to)
    with context.database.read(visitor.tenant) as connection:
        dataset = dataset_records.find(connection, visitor.tenant, name)
        listed = dataset_records.versions(connection, dataset, before=_LAST_VERSION, limit=_OFFERED)
        offered = [one.number for one in listed if one.state == "completed"]
        right = dataset_records.completed(connection, dataset, wanted)
        if asked is None:
            asked = next((number for number in offered if number < right.number), right.number)
        left = dataset_records.completed(connection, dataset, asked)
        found = comparison.compare(connection, left, right, limit=_DIFFERENCES)
        jobs = {ids.parse_job(one.job_id) for one in found.images}
        there = {ids.public_job(job) for job in source_jobs.known(connection, jobs)} if jobs else set()
    return rendering.page(
        request,
        "dataset_diff.html",
        visitor=visitor,
        dataset=dataset,
        offered=sorted({*offered, left.number, right.number}, reverse=True),
        left=left.number,
        right=right.number,
        found=found,
        there=there,
        command=f"presswork dataset diff {name} {left.number} {right.number} --limit 1000",
        sides=[
            (side, count, [one for one in found.images if one.change == side])
            for side, count in (("removed", found.removed), ("added", found.added))
        ],
        more=urlencode({"from": right.number, "to": left.number}),
    )


def _link(context: Any, file: Any) -> str:
    name = file.path.rpartition("/")[2]
    found: str = context.store.presign(file.object_key, context.settings.url_seconds, name)
    return found


def _text(store: ImageStore, key: str) -> str:
    """The card; empty if the version is being deleted."""
    try:
        return store.read(key).decode("utf-8", "replace")[:_CARD]
    except ObjectMissing:
        return ""


def _number(given: str) -> int | None:
    if given and not parameters.is_whole(given, digits=9):
        raise ApiError(400, "invalid_parameter", "from and to must be numbers of versions.")
    return int(given) if given else None
