"""What each kind of act says in the action log: a sentence in plain English, about something that may have a page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.core.bulk import bulk
from services.core.events.queries import Event
from services.core.exports import records
from services.core.files import files, uploads
from services.core.fleet import workers
from services.core.model import ids
from services.core.policy import terms
from services.core.tenants import tenants, views
from services.core.webhooks import endpoints
from services.dashboard.words import plural, size

_STOPPED = {"cancelled": "cancelled", "expired": "stopped, out of time,"}


@dataclass(frozen=True, slots=True)
class Sentence:
    """`verb` the thing, whose page is at `path` if it has one, then `more`: cancelled, job_..., nothing more."""

    verb: str
    thing: str
    path: str | None
    more: str = ""


Data = dict[str, Any]
Words = Callable[[Data], tuple[str, str]]


def _may(data: Data) -> str:
    return "which may " + str(data.get("scopes", "")).replace(" ", ", ")


def _set(data: Data) -> str:
    return f"setting {data['set']}" if data.get("set") else ""


def _plain(verb: str, more: str = "") -> Words:
    return lambda _: (verb, more)


# In the order in which the page offers them: the kind, what it is called there, and what it says.
KINDS: dict[str, tuple[str, Words]] = {
    "job.created": ("made a job", lambda data: ("began" if data.get("state") == "draft" else "submitted", "")),
    "job.submitted": ("finalized a draft", _plain("finalized the draft", "")),
    "job.cancel_requested": (
        "cancelled a job", lambda data: (_STOPPED.get(str(data.get("reason")), "cancelled"), ""),
    ),
    "job.paused": ("paused a job", _plain("paused")),
    "job.resumed": ("resumed a job", _plain("resumed")),
    "job.priority_changed": (
        "changed a priority", lambda data: ("gave", f"the priority {data.get('priority', '')}"),
    ),
    "job.model_moved": (
        "moved a job to another model", lambda data: ("moved", f"to the revision {str(data.get('to', ''))[:12]}"),
    ),
    "job.labels_changed": ("changed labels", _plain("changed the labels of")),
    "job.marked": (
        "marked images",
        lambda data: (
            ("took the marks off" if data.get("mark") == "none" else f"marked as {data.get('mark', '')}")
            + f" {plural(int(data.get('images', 0)), 'image')} of", "",
        ),
    ),
    "bulk.requested": (
        "acted on many jobs",
        lambda data: (f"asked to {data.get('action', '')} {plural(int(data.get('jobs', 0)), 'job')}:", ""),
    ),
    "bulk.stopped": ("stopped an act on many", _plain("stopped")),
    "job.deleted": ("deleted a job", lambda data: ("deleted", f"with {plural(int(data.get('total', 0)), 'image')}")),
    "export.created": ("began an export", lambda data: ("began", f"as {data.get('format', '')}")),
    "export.cancelled": ("cancelled an export", _plain("cancelled")),
    "export.deleted": ("deleted an export", _plain("deleted")),
    "file.created": ("made a file", lambda data: ("made", f"for {data.get('purpose', '')}".replace("_", " "))),
    "file.deleted": ("deleted a file", _plain("deleted")),
    "file.expired": ("let a file expire", _plain("removed", "which had expired")),
    "upload.created": ("began an upload", lambda data: ("began", f"of {size(int(data.get('bytes', 0)))}")),
    "upload.completed": ("completed an upload", _plain("completed")),
    "upload.cancelled": ("cancelled an upload", _plain("cancelled")),
    "upload.expired": ("let an upload expire", _plain("removed", "which had expired")),
    "key.issued": (
        "made a key", lambda data: (f"made the key {data.get('name', '')},", _may(data)),
    ),
    "key.revoked": ("revoked a key", lambda data: (f"revoked the key {data.get('name', '')},", "")),
    "tenant.created": ("made a tenant", lambda data: (f"made the tenant {data.get('name', '')},", _set(data))),
    "tenant.changed": ("changed a tenant", lambda data: (f"changed the tenant {data.get('name', '')},", _set(data))),
    "tenant.delete_requested": (
        "asked to delete a tenant", lambda data: (f"asked to delete the tenant {data.get('name', '')},", ""),
    ),
    "tenant.emptied": ("emptied a tenant", lambda data: (f"emptied the tenant {data.get('name', '')},", "")),
    "tenant.deleted": ("deleted a tenant", lambda data: (f"deleted the tenant {data.get('name', '')},", "")),
    "tenant.suspended": ("suspended a tenant", lambda data: (f"suspended the tenant {data.get('name', '')},", "")),
    "tenant.activated": (
        "made a tenant active", lambda data: (f"made the tenant {data.get('name', '')} active again,", ""),
    ),
    "view.saved": ("saved a view", lambda data: (f"saved the view {data.get('name', '')},", "")),
    "view.changed": ("changed a view", lambda data: (f"changed the view {data.get('name', '')},", "")),
    "view.deleted": ("deleted a view", lambda data: (f"deleted the view {data.get('name', '')},", "")),
    "policy.term_added": ("added a term to the content policy", _plain("added a term to the content policy,")),
    "policy.term_removed": ("removed a term of the content policy", _plain("removed a term of the content policy,")),
    "job.images_refused": (
        "refused images by content policy",
        lambda data: ("queued", f"without {plural(int(data.get('images', 0)), 'image')} that the policy refuses"),
    ),
    "policy.refused": (
        "was refused by the policy",
        lambda data: (f"was refused {plural(int(data.get('prompts', 0)), 'prompt')} by the content policy of", ""),
    ),
    "license.accepted": ("accepted a licence", lambda data: (f"accepted the licence {data.get('license', '')},", "")),
    "webhook.created": ("made a webhook", _plain("made")),
    "webhook.changed": ("changed a webhook", _plain("changed")),
    "webhook.enabled": ("enabled a webhook", _plain("enabled")),
    "webhook.disabled": ("disabled a webhook", _plain("disabled")),
    "webhook.secret_rotated": ("rotated a webhook's secret", _plain("rotated the secret of")),
    "webhook.tested": ("tested a webhook", _plain("sent a test message to")),
    "webhook.redelivered": ("redelivered a message", _plain("sent a message again to")),
    "webhook.deleted": ("deleted a webhook", _plain("deleted")),
    "webhook.secret_shown": ("saw a webhook's secret", _plain("saw the secret of")),
    "job.payloads_erased": ("erased prompts", _plain("erased the prompts of")),
    "job.objects_deleted": ("deleted pictures", _plain("deleted the pictures of")),
    "retention.changed": ("changed the retention rule", _plain("changed the retention rule of")),
    "storage.audit_requested": ("began an audit of the store", _plain("began an audit of the object store,")),
    "storage.restore_accepted": ("accepted a restore", _plain("accepted database and store after a restore,")),
    "storage.audited": ("audited the store", _plain("audited the object store,")),
    "schedule.created": ("made a schedule", _plain("made")),
    "schedule.changed": ("changed a schedule", _plain("changed")),
    "schedule.paused": ("paused a schedule", _plain("paused")),
    "schedule.resumed": ("resumed a schedule", _plain("resumed")),
    "schedule.deleted": ("deleted a schedule", _plain("deleted")),
    "schedule.fired": ("fired a schedule", _plain("fired")),
    "schedule.run_requested": ("ran a schedule", _plain("ran")),
    "schedule.run_skipped": ("skipped a run of a schedule", _plain("skipped a run of")),
    "schedule.run_refused": ("refused a run of a schedule", _plain("refused a run of")),
    "schedule.deadline_at_risk": ("warned of a deadline", _plain("warned that a run may miss its deadline, of")),
    "schedule.deadline_missed": ("noted a missed deadline", _plain("noted that a run has missed its deadline, of")),
    "dataset.created": ("made a dataset", _plain("made the dataset")),
    "dataset.changed": ("changed a dataset", _plain("changed the dataset")),
    "dataset.deleted": ("deleted a dataset", _plain("deleted the dataset")),
    "dataset.version_asked": (
        "asked for a version", lambda data: (f"asked for version {data.get('version', '')} of", ""),
    ),
    "dataset.version_completed": (
        "completed a version", lambda data: (f"completed version {data.get('version', '')} of", ""),
    ),
    "dataset.version_failed": (
        "ended a version, which failed", lambda data: (f"could not write version {data.get('version', '')} of", ""),
    ),
    "dataset.version_cancelled": (
        "cancelled a version", lambda data: (f"stopped version {data.get('version', '')} of", ""),
    ),
    "dataset.version_deleted": (
        "deleted a version", lambda data: (f"deleted version {data.get('version', '')} of", ""),
    ),
    "catalogue.created": ("made a catalogue", _plain("made")),
    "catalogue.changed": ("changed a catalogue", _plain("changed")),
    "catalogue.uploaded": ("uploaded a feed", _plain("uploaded the feed of")),
    "catalogue.run": ("ran a catalogue", _plain("ran")),
    "catalogue.run_cancelling": ("cancelled a run", _plain("asked the run to stop, of")),
    "catalogue.redrawn": (
        "had pictures drawn again",
        lambda data: (f"had {plural(int(data.get('images', 0)), 'picture')} drawn again in a review of", ""),
    ),
    "catalogue.published": (
        "published a version", lambda data: (f"published version {data.get('version', '')} of", ""),
    ),
    "catalogue.run_published": ("ended a run, which published", _plain("ended a run of", "which has published")),
    "catalogue.run_unchanged": ("ended a run without changes", _plain("ended a run of", "which found no changes")),
    "catalogue.run_kept": ("kept the version before", _plain("ended a run of", "and kept the version before")),
    "catalogue.run_planned": ("planned a run", _plain("planned a run of")),
    "catalogue.run_failed": ("ended a run, which failed", _plain("ended a run of", "which failed")),
    "catalogue.run_cancelled": ("stopped a run", _plain("stopped a run of")),
    "catalogue.copied": (
        "copied a version elsewhere", lambda data: (f"copied version {data.get('version', '')} of",
                                                    f"to {data.get('place', '')}"),
    ),
    "catalogue.copy_failed": (
        "failed to copy a version", lambda data: (f"could not copy version {data.get('version', '')} of",
                                                  f"to {data.get('place', '')}"),
    ),
    "catalogue.deleted": ("deleted a catalogue", _plain("deleted")),
    "worker.drained": ("drained a worker", _plain("drained")),
    "worker.resumed": ("resumed a worker", _plain("resumed")),
}  # fmt: skip
_NAMES: dict[str, Callable[[int], str]] = {
    "job": ids.public_job, "export": records.public_id, "file": files.public_id, "upload": uploads.public_id,
    "bulk": bulk.public_id,
    "view": views.public_id, "tenant": tenants.public_id, "webhook": endpoints.public_id,
    "policy_term": terms.public_id, "retention": tenants.public_id,
}  # fmt: skip


def of(event: Event, *, names_hosts: bool) -> Sentence:
    """What happened; a worker's device with its host for those who may operate."""
    kind, _, name = event.subject.partition("/")
    if kind == "device" and not names_hosts:
        name = workers.without_host(name)
    thing = _NAMES[kind](int(name)) if kind in _NAMES else {"key": f"pw_{name}…"}.get(kind, name)
    known = KINDS.get(event.kind)
    if known is None:  # of a newer release, which runs beside this one
        return Sentence(event.kind.replace(".", " ").replace("_", " "), thing, None)
    verb, more = known[1](event.data)
    return Sentence(verb, thing, _path(event, kind, thing), more)


def _path(event: Event, kind: str, thing: str) -> str | None:
    if event.kind == "job.deleted":
        return None
    if kind == "job":
        return f"/jobs/{thing}"
    if kind == "export" and "job" in event.data:
        return f"/jobs/{ids.public_job(event.data['job'])}#exports"
    if kind == "bulk":
        return f"/bulk/{thing}"
    if kind in ("view", "retention"):
        return {"view": "/settings/views", "retention": "/settings/storage"}[kind]
    if kind == "webhook" and event.kind != "webhook.deleted":
        return f"/settings/webhooks/{thing}"
    if kind == "schedule" and event.kind != "schedule.deleted":
        return f"/schedules/{thing}"
    if kind == "catalogue" and event.kind != "catalogue.deleted":
        return f"/catalogues/{thing}" + (f"/runs/{event.data['run']}" if event.data.get("run") else "")
    return "/fleet" if kind == "device" else None
