"""The client: one method for each operation of the API."""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from presswork_client.answers import (
    Action,
    AlikeGroup,
    AppendedChunk,
    Backlog,
    Catalogue,
    CatalogueChange,
    CatalogueDifference,
    CatalogueItem,
    CatalogueRun,
    CatalogueVersion,
    ChangeKind,
    Chunk,
    Dataset,
    Estimate,
    Event,
    EventPage,
    Export,
    ExportFile,
    ExportFormat,
    FailureCause,
    File,
    FileDeleted,
    Image,
    ImageMark,
    ImageOfJob,
    ImageRequest,
    Job,
    JobDeleted,
    JobDeletion,
    JobRatePoint,
    JobRequest,
    JobsAction,
    JobsActionPreview,
    LaneList,
    MarkCounts,
    MarkPage,
    MarksChanged,
    Matrix,
    Model,
    Overview,
    PolicyCheck,
    PolicyTerm,
    PolicyTermRemoved,
    Preview,
    RateSeries,
    RetentionDueList,
    RetentionRule,
    Schedule,
    ScheduleDeleted,
    ScheduleRun,
    ScheduleTimes,
    SignInLink,
    TenantDeletion,
    Usage,
    Worker,
    WorkerDevices,
    WorkerList,
)
from presswork_client.datasets import DatasetHandle
from presswork_client.transport import ClientError, Transport, file_sha256
from presswork_client.webhooks import Webhooks

T = TypeVar("T")
PAGE = 1000
REQUESTS_PAGE = 100  # each comes with all its images
MARKS_AT_ONCE = 5000  # the most that the server takes
_AGAIN_SECONDS = 0.5  # between streams that were cut off
_LINES = {"Content-Type": "application/x-ndjson"}


class Client:
    """Thread-safe. `timeout` is for one attempt and `patience` for all attempts of a call, in seconds. `on_wait` is
    called with the error before each pause. Every method raises ClientError."""

    def __init__(
        self,
        url: str,
        key: str,
        timeout: float = 60.0,
        patience: float = 30.0,
        on_wait: Callable[[ClientError], None] | None = None,
    ) -> None:
        self._transport = Transport(url, key, timeout, patience, on_wait)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self) -> bool:
        """Whether a submission would be accepted now."""
        try:
            return self._transport.http.get("/readyz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    # --- submitting

    def submit(self, images: Iterable[ImageRequest], *, idempotency_key: str | None = None, **head: Any) -> Job:
        """`head`: defaults, priority, labels, dedupe, embed_prompt, store."""
        body = json.dumps({"images": list(images), **head}).encode()
        return self.submit_body(body, "application/json", idempotency_key=idempotency_key)

    def submit_matrix(self, matrix: Matrix, *, idempotency_key: str | None = None, **head: Any) -> Job:
        """Every combination of a matrix as a request; `head` as with `submit`."""
        body = json.dumps({"matrix": matrix, **head}).encode()
        return self.submit_body(body, "application/json", idempotency_key=idempotency_key)

    def submit_file(self, path: str | Path, *, priority: str | None = None, idempotency_key: str | None = None) -> Job:
        """Submits a file with one request object per line. It is streamed, so its size does not matter."""
        headers = _LINES | _key(idempotency_key)
        parameters = {} if priority is None else {"priority": priority}

        def send() -> httpx.Response:
            with Path(path).open("rb") as file:
                return self._transport.http.post("/v1/jobs", content=file, headers=headers, params=parameters)

        found: Job = self._transport.attempt(send).json()
        return found

    def submit_body(
        self, body: bytes, media: str, *, priority: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Submits a body unchanged. Only `application/x-ndjson` takes `priority` here; JSON has it in the body."""
        headers = {"Content-Type": media} | _key(idempotency_key)
        parameters = {} if priority is None else {"priority": priority}
        return self._job("POST", "", content=body, headers=headers, params=parameters)

    def preview(self, matrix: Matrix, **head: Any) -> Preview:
        """Counts the requests and images of a matrix, without submitting it."""
        return self._call(Preview, "POST", "/v1/jobs/preview", json={"matrix": matrix, **head})

    def estimate(
        self,
        images: Sequence[ImageRequest] | None = None,
        *,
        matrix: Matrix | None = None,
        shapes: Sequence[Mapping[str, Any]] | None = None,
        **head: Any,
    ) -> Estimate:
        """Estimates the time of requests, a matrix, or shapes such as {"images": 1000, "size": "512x512"}."""
        given = {"images": images, "matrix": matrix, "shapes": shapes}
        body = {name: value for name, value in given.items() if value is not None} | head
        return self._call(Estimate, "POST", "/v1/jobs/estimate", json=body)

    # --- submitting in parts

    def create_draft(self, *, idempotency_key: str | None = None, **head: Any) -> Job:
        """Creates a job that is sent in chunks, then finalized. `head` as with `submit`, without defaults."""
        return self._job("POST", "", json={"draft": True, **head}, headers=_key(idempotency_key))

    def put_chunk(self, job_id: str, number: int, lines: bytes) -> AppendedChunk:
        """Appends a chunk, one request per line. The same chunk may be sent again: then `replayed` is true."""
        return self._call(
            AppendedChunk, "PUT", f"/v1/jobs/{_id(job_id)}/chunks/{number}", content=lines, headers=_LINES
        )

    def chunks(self, job_id: str) -> Iterator[Chunk]:
        """The committed chunks of a draft."""
        return self._transport.pages(f"/v1/jobs/{_id(job_id)}/chunks", {}, PAGE)

    def finalize(self, job_id: str, chunks: int, images: int | None = None) -> Job:
        """Queues a draft that has all of its chunks."""
        counted = {} if images is None else {"images": images}
        return self._job("POST", f"/{_id(job_id)}/finalize", json={"chunks": chunks, **counted})

    # --- following and controlling

    def job(self, job_id: str) -> Job:
        return self._job("GET", f"/{_id(job_id)}")

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job as it is, and again whenever it has changed, until it has finished. A stream that is cut off is begun
        again."""
        while True:
            found: Job | None = None
            for kind, data in self._transport.messages(f"/v1/jobs/{_id(job_id)}/events"):
                if kind == "deleted":
                    raise ClientError(404, "not_found", data["message"])
                if kind == "job":
                    found = data
                    yield data
                    if data["finished_at"]:
                        return
            if found is None:
                found = self.job(job_id)
                yield found
                if found["finished_at"]:
                    return
            time.sleep(_AGAIN_SECONDS)

    def jobs(
        self, *, status: str | None = None, label: str | None = None, page: int = PAGE, **words: str
    ) -> Iterator[Job]:
        """All jobs, newest first, page by page; `label` is "name:value". `words`: the others of the dashboard's list,
        q, model, priority, who, since and until (a day, a moment, or "2h" ago), and sort."""
        return self._transport.pages("/v1/jobs", _given(status=status, label=label) | words, page)

    def overview(self) -> Overview:
        """Whether all is well and why not, what waits, how fast it goes, what fails, and the newest pictures."""
        return self._call(Overview, "GET", "/v1/overview")

    def rates(self, by: str = "minute", points: int = 60) -> RateSeries:
        """How fast images were finished, minute by minute or hour by hour (`by`)."""
        return self._call(RateSeries, "GET", "/v1/rates", params={"by": by, "points": points})

    def change(self, job_id: str, *, priority: str | None = None, labels: Mapping[str, str] | None = None) -> Job:
        return self._job("PATCH", f"/{_id(job_id)}", json=_given(priority=priority, labels=labels))

    def cancel(self, job_id: str) -> Job:
        """Cancels a job. After the answer none of its images becomes done."""
        return self._job("POST", f"/{_id(job_id)}/cancel")

    def pause(self, job_id: str) -> Job:
        return self._job("POST", f"/{_id(job_id)}/pause")

    def resume(self, job_id: str) -> Job:
        return self._job("POST", f"/{_id(job_id)}/resume")

    def retry(self, job_id: str, *, idempotency_key: str | None = None, **options: Any) -> Job:
        """Makes a new job of the failed images. `options`: cause or indexes, for some of them; include_cancelled,
        priority, labels."""
        return self._job("POST", f"/{_id(job_id)}/retry", json=options, headers=_key(idempotency_key))

    def actions(
        self,
        *,
        actor: str | None = None,
        verb: str | None = None,
        job_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
        page: int = PAGE,
    ) -> Iterator[Action]:
        """Who changed what, newest first, page by page: all, or what one actor did, one verb, about one job, or from a
        moment on and before another (`2026-11-26T09:00:00Z`)."""
        asked = _given(actor=actor, verb=verb, job=job_id, since=since, until=until)
        return self._transport.pages("/v1/actions", asked, page)

    def audit(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        actor: str | None = None,
        event: str | None = None,
        tenant: str | None = None,
        page: int = 1000,
    ) -> Iterator[dict[str, Any]]:
        """The audit trail, the oldest first, page by page: of the key's tenant, or for the operator's administrators of
        `tenant`, which may be `*`. A line is a record, with its `hash` and the one before, or has a `fault`. The last
        line has `chains`, which says where the chain of each tenant ends."""
        asked = _given(since=since, until=until, actor=actor, event=event, tenant=tenant)
        return self._transport.lines("/v1/audit", asked, page)

    def create_sign_in_link(self, *, next: str | None = None) -> SignInLink:  # noqa: A002  as in the address
        """A link that opens the dashboard at the path `next`, signed in as this key: good once, for two minutes."""
        return self._call(SignInLink, "POST", "/v1/sign-in-links", params=_given(next=next))

    # --- every job that matches

    def preview_jobs_action(self, action: str, **asked: Any) -> JobsActionPreview:
        """How many jobs and images `act_on_jobs` would touch now. Changes nothing."""
        body = _given(action=action, **asked)
        return self._call(JobsActionPreview, "POST", "/v1/jobs/actions/preview", json=body)

    def act_on_jobs(self, action: str, *, idempotency_key: str | None = None, **asked: Any) -> JobsAction:
        """Cancels, pauses, resumes, retries, prioritizes or deletes every job of a `status` (a list), with that `label`
        (`name:value`) and that `text` in a label, in the background."""
        body = _given(action=action, **asked)
        return self._call(JobsAction, "POST", "/v1/jobs/actions", json=body, headers=_key(idempotency_key))

    def jobs_action(self, action_id: str) -> JobsAction:
        """How far an act on many jobs is."""
        return self._call(JobsAction, "GET", f"/v1/jobs/actions/{_id(action_id)}")

    def jobs_actions(self, page: int = PAGE) -> Iterator[JobsAction]:
        """The acts on many jobs, newest first, page by page."""
        return self._transport.pages("/v1/jobs/actions", {}, page)

    def stop_jobs_action(self, action_id: str) -> JobsAction:
        """Stops an act on many jobs; what it has done stays done."""
        return self._call(JobsAction, "POST", f"/v1/jobs/actions/{_id(action_id)}/stop")

    # --- deleting

    def deletion(self, job_id: str) -> JobDeletion:
        """What `delete_job` would take, and why it would be refused. Deletes nothing."""
        return self._call(JobDeletion, "GET", f"/v1/jobs/{_id(job_id)}/deletion")

    def delete_job(self, job_id: str) -> JobDeleted:
        """Deletes a job that has ended, or an open draft, with its images, exports and output files."""
        return self._call(JobDeleted, "DELETE", f"/v1/jobs/{_id(job_id)}")

    def file(self, file_id: str) -> File:
        return self._call(File, "GET", f"/v1/files/{_id(file_id)}")

    def delete_file(self, file_id: str) -> FileDeleted:
        return self._call(FileDeleted, "DELETE", f"/v1/files/{_id(file_id)}")

    # --- results

    def images(
        self,
        job_id: str,
        status: str | None = None,
        *,
        order: str | None = None,
        cause: str | None = None,
        mark: str | None = None,
        score: str | None = None,
        sort: str | None = None,
        metadata: str | None = None,
    ) -> Iterator[Image]:
        """The job's images in order, page by page: all, or those of a status, a `cause` of failure, a `mark`, with
        scores such as "sharpness>=0.3,uniform<=0.9", or with metadata such as "split=val,lang!=de". `order` may be
        "failed_first"; `sort` a score's name, with "-" before it for the highest first."""
        given = _given(status=status, order=order, cause=cause, mark=mark, sort=sort, score=score, metadata=metadata)
        return self._transport.pages(f"/v1/jobs/{_id(job_id)}/images", given, PAGE)

    def near_duplicates(
        self, job_id: str | None = None, *, label: tuple[str, str] | None = None, distance: int = 4
    ) -> Iterator[AlikeGroup]:
        """Groups of images that look alike, of a job or of all jobs with a label (name, value): their perceptual hashes
        differ in at most `distance` of 64 bits."""
        if (job_id is None) == (label is None):
            raise ValueError("give either a job's id or a label")
        path = "/v1/near-duplicates" if job_id is None else f"/v1/jobs/{_id(job_id)}/near-duplicates"
        given = _given(distance=distance, label=None if label is None else ":".join(label))
        return self._transport.pages(path, given)

    def marks(self, job_id: str, mark: str | None = None) -> Iterator[ImageMark]:
        """The marks of the job's images, page by page; `mark` may be "accepted", "rejected" or "starred"."""
        return self._transport.pages(f"/v1/jobs/{_id(job_id)}/marks", _given(mark=mark), PAGE)

    def mark_counts(self, job_id: str) -> MarkCounts:
        """How many of the job's images have each mark."""
        return self._call(MarkPage, "GET", f"/v1/jobs/{_id(job_id)}/marks", params={"limit": 1})["counts"]

    def mark(self, job_id: str, mark: str, indexes: Iterable[int]) -> MarksChanged:
        """Sets the mark of these done images, some thousands at a time; "none" removes it."""
        total, wanted = MarksChanged(object="job.marks", matched=0, changed=0, next_cursor=None), list(indexes)
        for begin in range(0, len(wanted), MARKS_AT_ONCE):
            _add(total, self._mark(job_id, mark, {"indexes": wanted[begin : begin + MARKS_AT_ONCE]}))
        return total

    def mark_matching(self, job_id: str, mark: str, **matching: Any) -> MarksChanged:
        """Sets the mark of all done images that match: `mark_now` ("none" for those without one), `flagged`."""
        which = _given(mark=matching.pop("mark_now", None), flagged=matching.pop("flagged", None)) | matching
        total, cursor = MarksChanged(object="job.marks", matched=0, changed=0, next_cursor=None), None
        while True:
            found = self._mark(job_id, mark, {"matching": which} | _given(cursor=cursor))
            _add(total, found)
            if (cursor := found["next_cursor"]) is None:
                return total

    def accept_license(self, model: str, sha256: str | None = None) -> Model:
        """Accepts the licence of a model for the tenant; with `sha256`, only the one that was read. Takes the scope
        admin."""
        path = f"/v1/models/{_id(model)}/license/accept"
        return self._call(Model, "POST", path, json=_given(sha256=sha256))

    def policy_terms(self) -> Iterator[PolicyTerm]:
        """The terms that the tenant's content policy refuses, page by page. Takes the scope admin, as those below."""
        return self._transport.pages("/v1/policy/terms", {}, PAGE)

    def add_policy_term(self, term: str) -> PolicyTerm:
        """Adds a word or a phrase; one that folds to the same words may be there already."""
        return self._call(PolicyTerm, "POST", "/v1/policy/terms", json={"term": term})

    def remove_policy_term(self, term_id: str) -> None:
        self._call(PolicyTermRemoved, "DELETE", f"/v1/policy/terms/{_id(term_id)}")

    def check_policy(self, text: str) -> PolicyCheck:
        """Whether a prompt with this text would be refused, and by which terms."""
        return self._call(PolicyCheck, "POST", "/v1/policy/check", json={"text": text})

    def job_rates(self, job_id: str) -> list[JobRatePoint]:
        """How fast images of the job were finished, from its first claim until it finished, or until now."""
        return list(self._call(dict[str, list[JobRatePoint]], "GET", f"/v1/jobs/{_id(job_id)}/rates")["data"])

    def failures(self, job_id: str) -> list[FailureCause]:
        """Why images of the job failed, the most frequent cause first."""
        return list(self._call(dict[str, list[FailureCause]], "GET", f"/v1/jobs/{_id(job_id)}/failures")["data"])

    def search(self, job_id: str, text: str) -> Iterator[Image]:
        """The first image of each request whose prompt or custom_id contains the text, page by page."""
        return self._transport.pages(f"/v1/jobs/{_id(job_id)}/search", {"text": text}, PAGE)

    def find(self, custom_id: str) -> Iterator[ImageOfJob]:
        """The first image of each request with that custom_id, in all jobs, the newest job first, page by page."""
        return self._transport.pages("/v1/images", {"custom_id": custom_id}, PAGE)

    def requests(self, job_id: str, status: str | None = None, *, page: int = REQUESTS_PAGE) -> Iterator[JobRequest]:
        """The job's requests with their images, page by page: failed first, then rendering, queued, cancelled, done."""
        return self._transport.pages(f"/v1/jobs/{_id(job_id)}/requests", _given(status=status), page)

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """The job's events with a higher `seq` than `after`, oldest first, page by page."""
        more = True
        while more:
            parameters = {"after": after, "limit": PAGE}
            answer: EventPage = self._transport.call("GET", f"/v1/jobs/{_id(job_id)}/events", params=parameters)
            yield from answer["data"]
            more = answer["has_more"]
            after = answer["data"][-1]["seq"] if more else after

    def download(self, job_id: str, index: int) -> bytes:
        """The bytes of the stored file."""
        path = f"/v1/jobs/{_id(job_id)}/images/{index}/content"
        found = self._transport.attempt(lambda: self._transport.http.get(path))
        if "Location" not in found.headers:  # it lies in a shard: these are the bytes
            return found.content
        return self._transport.fetch(found.headers["Location"])

    # --- exports

    def create_export(
        self,
        job_id: str,
        format: ExportFormat,
        options: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Export:
        """Starts to write a finished job's images as a data set."""
        body = {"format": format} | _given(options=options)
        return self._call(Export, "POST", f"/v1/jobs/{_id(job_id)}/exports", json=body, headers=_key(idempotency_key))

    def exports(self, job_id: str) -> Iterator[Export]:
        return self._transport.pages(f"/v1/jobs/{_id(job_id)}/exports", {}, PAGE)

    def export(self, export_id: str) -> Export:
        return self._call(Export, "GET", f"/v1/exports/{_id(export_id)}")

    def cancel_export(self, export_id: str) -> Export:
        return self._call(Export, "POST", f"/v1/exports/{_id(export_id)}/cancel")

    def delete_export(self, export_id: str) -> None:
        self._call(dict[str, str], "DELETE", f"/v1/exports/{_id(export_id)}")

    def export_files(self, export_id: str) -> Iterator[ExportFile]:
        """The files of an export. Their URLs need no key and last as long as the export."""
        return self._transport.pages(f"/v1/exports/{_id(export_id)}/files", {}, 100)

    def save(self, file: ExportFile, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        """Fetches a file of an export to `path` and verifies it. An interrupted download is resumed."""
        self._transport.save(file["url"], path, file["sha256"], on_bytes)

    # --- datasets

    def datasets(self) -> Iterator[Dataset]:
        """All datasets by name, page by page."""
        return self._transport.pages("/v1/datasets", {}, PAGE)

    def create_dataset(self, name: str, **fields: Any) -> Dataset:
        """Makes a dataset. `fields`: format, jobs, labels, filters, split, images_per_shard, types."""
        return self._call(Dataset, "POST", "/v1/datasets", json={"name": name, **fields})

    def dataset(self, name: str) -> DatasetHandle:
        """The dataset of that name, with its versions and images. Nothing is asked of the server yet."""
        return DatasetHandle(self._transport, name)

    # --- schedules

    def schedules(self) -> Iterator[Schedule]:
        """All schedules by name, page by page, each with its last run."""
        return self._transport.pages("/v1/schedules", {}, 100)

    def schedule(self, name: str) -> Schedule:
        return self._schedule("GET", name)

    def create_schedule(self, name: str, **fields: Any) -> Schedule:
        """Makes a schedule that is not there yet. `fields`: cron or at, timezone, target, misfire, misfire_limit,
        overlap, deadline, paused."""
        return self._call(Schedule, "POST", "/v1/schedules", json={"name": name, **fields})

    def put_schedule(self, name: str, **fields: Any) -> Schedule:
        """Makes the schedule of that name, or makes it this one. `fields` as with `create_schedule`."""
        return self._schedule("PUT", name, json=fields)

    def pause_schedule(self, name: str) -> Schedule:
        return self._schedule("PATCH", name, json={"paused": True})

    def resume_schedule(self, name: str) -> Schedule:
        return self._schedule("PATCH", name, json={"paused": False})

    def delete_schedule(self, name: str) -> ScheduleDeleted:
        """Deletes a schedule; its jobs stay."""
        return self._call(ScheduleDeleted, "DELETE", f"/v1/schedules/{_id(name)}")

    def run_schedule(self, name: str, *, idempotency_key: str | None = None) -> ScheduleRun:
        """Runs a schedule now, beside its times."""
        path = f"/v1/schedules/{_id(name)}/run"
        return self._call(ScheduleRun, "POST", path, headers=_key(idempotency_key))

    def schedule_times(self, name: str, count: int = 10) -> ScheduleTimes:
        """When it fires next."""
        return self._call(ScheduleTimes, "GET", f"/v1/schedules/{_id(name)}/times", params={"count": count})

    def schedule_runs(self, name: str, *, page: int = PAGE) -> Iterator[ScheduleRun]:
        """The runs of a schedule, newest first, page by page."""
        return self._transport.pages(f"/v1/schedules/{_id(name)}/runs", {}, page)

    # --- webhooks

    @property
    def webhooks(self) -> Webhooks:
        """Webhooks: `client.webhooks.create("https://...")`."""
        return Webhooks(self._transport)

    def models(self) -> list[Model]:
        return list(self._call(dict[str, list[Model]], "GET", "/v1/models")["data"])

    def workers(self) -> list[Worker]:
        """The workers of the last five minutes; none for a key without the scope `operate`."""
        return self._call(WorkerList, "GET", "/v1/workers")["data"]

    def devices(self) -> list[WorkerDevices]:
        """How many live workers of each device and model there are."""
        return self._call(WorkerList, "GET", "/v1/workers")["devices"]

    def backlog(self, model: str, *, seconds_per_image: float = 10.0) -> Backlog:
        """The work that waits for a model, of all tenants for a key of the operator's. `seconds_per_image` is used
        until the model has been measured."""
        params = {"model": model, "seconds_per_image": seconds_per_image}
        return self._call(Backlog, "GET", "/v1/fleet/backlog", params=params)

    def lanes(self) -> LaneList:
        """What waits, by shape and priority; of all tenants for a key of the operator's with the scope `admin`."""
        return self._call(LaneList, "GET", "/v1/lanes")

    def usage(self) -> Usage:
        """What the key's tenant uses, beside the quotas that limit it."""
        return self._call(Usage, "GET", "/v1/usage")

    def retention(self) -> RetentionRule:
        """For how many days after their end the tenant's jobs keep what."""
        return self._call(RetentionRule, "GET", "/v1/retention")

    def set_retention(self, days: Mapping[str, int | None]) -> RetentionRule:
        """Changes the rule for the kinds that are named: "payloads", "objects" or "records"; None is for ever."""
        return self._call(RetentionRule, "PATCH", "/v1/retention", json=dict(days))

    def retention_due(self, *, within_days: int = 0) -> RetentionDueList:
        """What would go now, or within so many days."""
        return self._call(RetentionDueList, "GET", "/v1/retention/due", params={"within_days": within_days})

    def delete_tenant(self, name: str) -> TenantDeletion:
        """Deletes a tenant with all that belongs to it, in the background. What is gone cannot be restored."""
        return self._call(TenantDeletion, "DELETE", f"/v1/tenants/{_id(name)}", params={"confirm": name})

    def tenant_deletion(self, name: str) -> TenantDeletion:
        """How far it is, and at its end what remains."""
        return self._call(TenantDeletion, "GET", f"/v1/tenants/{_id(name)}/deletion")

    def drain_worker(self, worker_id: str) -> Worker:
        """Its device finishes what it holds and takes nothing new, until it is resumed."""
        return self._call(Worker, "POST", f"/v1/workers/{_id(worker_id)}/drain")

    def resume_worker(self, worker_id: str) -> Worker:
        return self._call(Worker, "POST", f"/v1/workers/{_id(worker_id)}/resume")

    # --- catalogues

    def put_catalogue(self, name: str, definition: Mapping[str, Any]) -> Catalogue:
        """Makes a catalogue, or gives it another definition."""
        return self._call(Catalogue, "PUT", _catalogue(name), json=definition)

    def catalogues(self) -> Iterator[Catalogue]:
        """The catalogues, by name."""
        return self._transport.pages("/v1/catalogues", {}, PAGE)

    def catalogue(self, name: str) -> Catalogue:
        return self._call(Catalogue, "GET", _catalogue(name))

    def delete_catalogue(self, name: str) -> None:
        """Deletes a catalogue with its versions and their pictures."""
        self._call(dict[str, str], "DELETE", _catalogue(name))

    def upload_to_catalogue(self, name: str, path: str | Path) -> Catalogue:
        """Uploads the file that the catalogue's runs read from now on, unless the last upload has the same bytes."""
        now, path = self.catalogue(name), Path(path)
        if now["file_id"] is not None and self._has_bytes(now["file_id"], file_sha256(path)):
            return now
        file = self.upload(path)
        return self._call(Catalogue, "PUT", f"{_catalogue(name)}/file", json={"file_id": file["id"]})

    def upload(self, path: str | Path, *, purpose: str = "batch", idempotency_key: str | None = None) -> File:
        """Uploads a file: of requests or of a catalogue, or a picture to draw from (`purpose="vision"`), whose id is
        then the `image` of requests."""
        headers = _key(idempotency_key)

        def send() -> httpx.Response:
            with Path(path).open("rb") as file:
                parts = {"file": (Path(path).name, file)}
                return self._transport.http.post("/v1/files", files=parts, data={"purpose": purpose}, headers=headers)

        found: File = self._transport.attempt(send).json()
        return found

    def run_catalogue(self, name: str, *, idempotency_key: str | None = None, **options: Any) -> CatalogueRun:
        """Begins a run. `options`: plan_only, accept_removed, deadline."""
        return self._call(CatalogueRun, "POST", f"{_catalogue(name)}/runs", json=options, headers=_key(idempotency_key))

    def catalogue_run(self, name: str, run_id: str) -> CatalogueRun:
        return self._call(CatalogueRun, "GET", f"{_catalogue(name)}/runs/{_id(run_id)}")

    def catalogue_runs(self, name: str, *, page: int = PAGE) -> Iterator[CatalogueRun]:
        """The catalogue's runs, newest first."""
        return self._transport.pages(f"{_catalogue(name)}/runs", {}, page)

    def cancel_catalogue_run(self, name: str, run_id: str) -> CatalogueRun:
        """Cancels a run and its job; what is published stays."""
        return self._call(CatalogueRun, "POST", f"{_catalogue(name)}/runs/{_id(run_id)}/cancel")

    def redraw_catalogue_changes(
        self, name: str, run_id: str, indexes: Iterable[int], *, idempotency_key: str | None = None
    ) -> Job:
        """Draws changed pictures of a review again with other seeds, by their changes' indexes. Returns the job."""
        place = f"{_catalogue(name)}/runs/{_id(run_id)}/redraw"
        return self._call(Job, "POST", place, json={"indexes": list(indexes)}, headers=_key(idempotency_key))

    def estimate_catalogue_run(self, name: str, run_id: str) -> Estimate:
        """The time that all that a planned run renders would take."""
        return self._call(Estimate, "GET", f"{_catalogue(name)}/runs/{_id(run_id)}/estimate")

    def catalogue_changes(
        self, name: str, run_id: str, *, kind: ChangeKind | None = None, troubled: bool = False, page: int = PAGE
    ) -> Iterator[CatalogueChange]:
        """What a run found to differ: all, those of one kind, or those of which something went wrong (`troubled`)."""
        given = _given(kind=kind, troubled="true" if troubled else None)
        return self._transport.pages(f"{_catalogue(name)}/runs/{_id(run_id)}/changes", given, page)

    def catalogue_versions(self, name: str) -> list[CatalogueVersion]:
        """The versions that are kept, newest first."""
        return list(self._call(dict[str, list[CatalogueVersion]], "GET", f"{_catalogue(name)}/versions")["data"])

    def catalogue_diff(
        self, name: str, before: int, after: int | None = None, *, page: int = PAGE
    ) -> Iterator[CatalogueDifference]:
        """Where the pictures of two kept versions differ; without `after`, to the published one."""
        return self._transport.pages(f"{_catalogue(name)}/diff", {"from": before} | _given(to=after), page)

    def publish(self, name: str, version: int) -> Catalogue:
        """Publishes a kept version, newer or older than the one that readers see."""
        return self._call(Catalogue, "POST", f"{_catalogue(name)}/publish", json={"version": version})

    def catalogue_items(self, name: str, version: int | None = None, *, page: int = PAGE) -> Iterator[CatalogueItem]:
        """The pictures of a kept version, or of the published one, by item and variant."""
        return self._transport.pages(f"{_catalogue(name)}/items", _given(version=version), page)

    def catalogue_picture(self, name: str, item: str, variant: str, version: int | None = None) -> bytes:
        """The bytes of an item's picture."""
        asked = {"id": item} | _given(version=version)
        place = f"{_catalogue(name)}/items/{_id(variant)}"
        return self._transport.attempt(lambda: self._transport.http.get(place, params=asked)).content

    def catalogue_manifest(self, name: str, version: int, format: str = "jsonl") -> bytes:
        """The list of a version's pictures; `format` may be "parquet"."""
        place = f"{_catalogue(name)}/versions/{version}/manifest"
        found = self._transport.attempt(lambda: self._transport.http.get(place, params={"format": format}))
        return self._transport.fetch(found.headers["Location"])

    def _has_bytes(self, file_id: str, sha256: str) -> bool:
        try:
            return self.file(file_id)["sha256"] == sha256
        except ClientError as error:
            if error.status == 404:
                return False
            raise

    def _mark(self, job_id: str, mark: str, which: dict[str, Any]) -> MarksChanged:
        return self._call(MarksChanged, "PUT", f"/v1/jobs/{_id(job_id)}/marks", json={"mark": mark, **which})

    def _job(self, method: str, path: str, **parts: Any) -> Job:
        return self._call(Job, method, f"/v1/jobs{path}", **parts)

    def _schedule(self, method: str, name: str, **parts: Any) -> Schedule:
        return self._call(Schedule, method, f"/v1/schedules/{_id(name)}", **parts)

    def _call(self, _kind: type[T], method: str, path: str, **parts: Any) -> T:
        found: T = self._transport.call(method, path, **parts)
        return found


def _add(total: MarksChanged, found: MarksChanged) -> None:
    total["matched"] += found["matched"]
    total["changed"] += found["changed"]


def _id(given: str) -> str:
    """The id, quoted so that it stays one segment of the path."""
    return quote(given, safe="")


def _catalogue(name: str) -> str:
    return f"/v1/catalogues/{_id(name)}"


def _key(given: str | None) -> dict[str, str]:
    return {"Idempotency-Key": given or secrets.token_urlsafe(24)}


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
