"""The types of messages, and the patterns by which an endpoint chooses among them.

A type is the kind of an event, such as `job.completed`; a job that came as a file has OpenAI's types for batches, too.
"""

import re
from collections.abc import Sequence

# What OpenAI's batches send; a batch that was accepted and whose requests all failed is `completed` there.
BATCH = {
    "job.completed": "batch.completed", "job.failed": "batch.failed", "job.expired": "batch.expired",
    "job.cancelled": "batch.cancelled",
}  # fmt: skip
TEST = "webhook.test"
# No endpoint hears of these: what concerns the fleet and its store, and what is sent to endpoints themselves.
_WITHHELD = ("worker", "webhook", "storage")
TYPES = (
    "job.created", "job.submitted", "job.queued", "job.started", "job.finalizing", "job.completed", "job.failed",
    "job.cancelled", "job.expired", "job.refused", "job.images_refused", "job.cancel_requested", "job.paused",
    "job.resumed", "job.priority_changed", "job.labels_changed", "job.marked", "job.payloads_erased",
    "job.objects_deleted", "job.model_moved", "job.deleted", "image.poison",
    *BATCH.values(),
    "export.created", "export.completed", "export.failed", "export.cancelled", "export.deleted",
    "dataset.created", "dataset.changed", "dataset.deleted", "dataset.version_asked", "dataset.version_completed",
    "dataset.version_failed", "dataset.version_cancelled", "dataset.version_deleted",
    "catalogue.created", "catalogue.changed", "catalogue.uploaded", "catalogue.run", "catalogue.run_planned",
    "catalogue.run_published", "catalogue.run_unchanged", "catalogue.run_kept", "catalogue.run_failed",
    "catalogue.run_cancelling", "catalogue.run_cancelled", "catalogue.redrawn", "catalogue.published",
    "catalogue.copied", "catalogue.copy_failed", "catalogue.deleted",
    "schedule.created", "schedule.changed", "schedule.paused", "schedule.resumed", "schedule.deleted", "schedule.fired",
    "schedule.run_requested", "schedule.run_skipped", "schedule.run_refused", "schedule.deadline_at_risk",
    "schedule.deadline_missed",
    "bulk.requested", "bulk.stopped", "file.created", "file.deleted", "file.expired", "upload.created",
    "upload.completed", "upload.cancelled", "upload.expired", "key.issued", "key.revoked", "view.saved",
    "view.changed", "view.deleted", "policy.term_added", "policy.term_removed", "policy.refused", "license.accepted",
    "retention.changed",
    "tenant.created", "tenant.changed", "tenant.suspended", "tenant.activated", "tenant.delete_requested",
    "tenant.emptied", "tenant.deleted",
)  # fmt: skip
# What an endpoint gets that does not choose: what has come to an end.
USUAL = ("job.completed", "job.failed", "job.cancelled", "job.expired", "batch.*", "export.completed", "export.failed")
MOST = 50
_NOUNS = tuple(dict.fromkeys(name.partition(".")[0] for name in TYPES))
_PATTERN = re.compile(r"[a-z]+\.(?:\*|[a-z_]+)|\*", re.ASCII)


def is_sent(name: str) -> bool:
    """Whether messages of that type are made at all."""
    return name.partition(".")[0] not in _WITHHELD


def fits(patterns: Sequence[str], name: str) -> bool:
    """Whether one of the patterns is the type, the type's noun with `.*`, or `*`."""
    return any(pattern in ("*", name, f"{name.partition('.')[0]}.*") for pattern in patterns)


def is_pattern(text: str) -> bool:
    """Whether a type that there is fits the pattern."""
    if _PATTERN.fullmatch(text) is None:
        return False
    noun, _, verb = text.partition(".")
    return text == "*" or text in TYPES or (verb == "*" and noun in _NOUNS)
