"""Every metric there is: which program tells it, what it says, and its labels. Nothing is counted that is not here.

Labels take values from a list that the program's own code or configuration limits; `bounded.py` limits the others. No
label names a tenant, a key or a person, or holds a prompt.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
SHORT = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds: requests, statements, uploads
LONG = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0, 1800.0)  # seconds: batches, background tasks


@dataclass(frozen=True, slots=True)
class Metric:
    """`of` is the program, or `every`, or `doors`: web servers and schedulers, which take work in; or `installation`:
    what the leading scheduler reads from the database."""

    name: str
    of: Literal["web", "doors", "scheduler", "worker", "installation", "every"]
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


ALL = (
    Metric("presswork_build_info", "every", "gauge", "1, with the program and its version.", ("program", "version")),
    Metric("presswork_disk_free_bytes", "every", "gauge", "Free bytes of the disk that a folder is on.", ("folder",)),
    Metric("presswork_disk_bytes", "every", "gauge", "Bytes of the disk that a folder is on.", ("folder",)),
    # web
    Metric(
        "presswork_http_requests_total",
        "web",
        "counter",
        "Answers, by route and class of status (2xx).",
        ("route", "method", "status"),
    ),
    Metric(
        "presswork_http_request_seconds",
        "web",
        "histogram",
        "Seconds from a request's head to the first byte of its answer.",
        ("route", "method"),
        SHORT,
    ),
    # web and scheduler
    Metric(
        "presswork_refused_prompts_total",
        "doors",
        "counter",
        "Prompts that the content policy refused, by the way that they came in.",
        ("door",),
    ),
    # scheduler
    Metric("presswork_scheduler_leads", "scheduler", "gauge", "1 if this scheduler leads."),
    Metric("presswork_scheduler_ticks_total", "scheduler", "counter", "Rounds of the leader through its timetable."),
    Metric(
        "presswork_scheduler_lead_changes_total",
        "scheduler",
        "counter",
        "How often it took or lost the lead.",
        ("move",),
    ),
    Metric(
        "presswork_periodic_task_seconds",
        "scheduler",
        "histogram",
        "Seconds of a periodic task, its commit included.",
        ("task",),
        SHORT,
    ),
    Metric("presswork_periodic_task_failures_total", "scheduler", "counter", "Periodic tasks that raised.", ("task",)),
    Metric(
        "presswork_periodic_task_rows_total",
        "scheduler",
        "counter",
        "What periodic tasks say that they did: images queued again by expire, rows deleted by forget-events.",
        ("task",),
    ),
    Metric(
        "presswork_background_tasks_total",
        "scheduler",
        "counter",
        "Turns of background tasks: done, postponed (something is away), failed, fenced (the lease was lost).",
        ("task", "outcome"),
    ),
    Metric(
        "presswork_background_task_seconds",
        "scheduler",
        "histogram",
        "Seconds of a background task's turn.",
        ("task",),
        LONG,
    ),
    Metric(
        "presswork_webhook_tries_total",
        "scheduler",
        "counter",
        "Messages sent to webhooks: delivered, refused (another status than 2xx), unreachable.",
        ("outcome",),
    ),
    Metric("presswork_webhook_seconds", "scheduler", "histogram", "Seconds until a webhook answered.", (), SHORT),
    Metric(
        "presswork_scheduler_database_away_total", "scheduler", "counter", "Rounds that the database did not serve."
    ),
    Metric("presswork_queue_read_seconds", "scheduler", "gauge", "Seconds of the leader's last look at the queue."),
    Metric(
        "presswork_queue_read_failures_total",
        "scheduler",
        "counter",
        "Looks at the queue that failed: until one succeeds, no figure of the installation is shown.",
    ),
    # worker
    Metric(
        "presswork_worker_up",
        "worker",
        "gauge",
        "1 if the worker's child is there and has loaded its model.",
        ("model",),
    ),
    Metric(
        "presswork_worker_child_deaths_total",
        "worker",
        "counter",
        "Deaths of the child that holds the model, while starting or ready.",
        ("model", "state"),
    ),
    Metric("presswork_worker_device_sick", "worker", "gauge", "1 if the device has failed its canary.", ("model",)),
    Metric(
        "presswork_worker_store_away",
        "worker",
        "gauge",
        "1 if nothing is claimed because the store does not serve.",
        ("model",),
    ),
    Metric(
        "presswork_worker_busy_seconds_total",
        "worker",
        "counter",
        "Seconds that the device worked on images; it grows with every step.",
        ("model",),
    ),
    Metric(
        "presswork_worker_claim_seconds",
        "worker",
        "histogram",
        "Seconds to look for images and claim some.",
        ("model",),
        SHORT,
    ),
    Metric(
        "presswork_worker_render_seconds",
        "worker",
        "histogram",
        "Seconds of one batch on the device.",
        ("model",),
        LONG,
    ),
    Metric("presswork_worker_batch_images_total", "worker", "counter", "Images in rendered batches.", ("model",)),
    Metric(
        "presswork_worker_batch_slots_total",
        "worker",
        "counter",
        "Sizes of rendered batches, padding included: batch_images / batch_slots is how full they were.",
        ("model",),
    ),
    Metric("presswork_worker_encode_seconds", "worker", "histogram", "Seconds to encode a picture.", ("model",), SHORT),
    Metric(
        "presswork_worker_store_seconds",
        "worker",
        "histogram",
        "Seconds of one try to store a picture.",
        ("model",),
        SHORT,
    ),
    Metric(
        "presswork_worker_store_errors_total",
        "worker",
        "counter",
        "Tries to store a picture that failed: refused (rights, or a full store) or unavailable.",
        ("model", "kind"),
    ),
    Metric(
        "presswork_worker_settle_seconds",
        "worker",
        "histogram",
        "Seconds to settle a claim, tries again included.",
        ("model",),
        SHORT,
    ),
    Metric(
        "presswork_worker_claims_total",
        "worker",
        "counter",
        "Claims that ended: ok, or fenced (the lease was lost before, so nothing was recorded).",
        ("model", "verdict"),
    ),
    Metric(
        "presswork_worker_images_total",
        "worker",
        "counter",
        "Images of settled claims: done, reused (done by copying), failed, released (to be tried again).",
        ("model", "outcome"),
    ),
    Metric(
        "presswork_worker_failures_total",
        "worker",
        "counter",
        "Failed images, by the code of their error.",
        ("model", "cause"),
    ),
    Metric(
        "presswork_worker_expired_images_total",
        "worker",
        "counter",
        "Images that this worker's timer queued again after a lease had run out.",
        ("model",),
    ),
    # installation
    Metric(
        "presswork_queue_images",
        "installation",
        "gauge",
        "Images that wait, by lane: size, steps and guidance. `other` sums up lanes beyond the largest 50.",
        ("model", "priority", "lane"),
    ),
    Metric(
        "presswork_queue_seconds",
        "installation",
        "gauge",
        "Accelerator-seconds of the images that wait, as measured.",
        ("model", "priority", "lane"),
    ),
    Metric(
        "presswork_queue_oldest_seconds",
        "installation",
        "gauge",
        "How long the oldest waiting job has waited.",
        ("model", "priority"),
    ),
    Metric(
        "presswork_queue_unserved_images",
        "installation",
        "gauge",
        "Images that wait and no live worker can render.",
        ("model",),
    ),
    Metric(
        "presswork_queue_unmeasured_images",
        "installation",
        "gauge",
        "Images whose seconds are a guess, because no worker has rendered anything of their model yet.",
        ("model",),
    ),
    Metric(
        "presswork_queue_held_images",
        "installation",
        "gauge",
        "Images of tenants that are suspended or have used up their day: no other figure of the queue counts them.",
        ("model",),
    ),
    Metric(
        "presswork_queue_looked_at_ratio",
        "installation",
        "gauge",
        "The part of the waiting images that the look has read, 0 to 1; the rest is taken to be like it.",
    ),
    Metric("presswork_rendering_images", "installation", "gauge", "Images under lease.", ("model",)),
    Metric(
        "presswork_backlog_seconds",
        "installation",
        "gauge",
        "Accelerator-seconds queued and rendering: what to scale workers on.",
        ("model",),
    ),
    Metric(
        "presswork_accelerators",
        "installation",
        "gauge",
        "Live workers by state: busy, idle, drained, sick, starting, silent.",
        ("model", "device", "state"),
    ),
    Metric(
        "presswork_worker_silent_seconds", "installation", "gauge", "The longest silence of a worker that should beat."
    ),
    Metric(
        "presswork_jobs",
        "installation",
        "gauge",
        "Jobs that have not ended, by state; counted up to 10,000.",
        ("state",),
    ),
    Metric(
        "presswork_deadlines",
        "installation",
        "gauge",
        "Runs of schedules that have not ended and have a deadline: on_time, at_risk, missed.",
        ("state",),
    ),
    Metric(
        "presswork_background_tasks_waiting",
        "installation",
        "gauge",
        "Items that wait for a background task; counted up to 200.",
        ("task",),
    ),
    Metric("presswork_webhooks_failing", "installation", "gauge", "Enabled webhooks whose last try failed."),
    Metric(
        "presswork_retention_waiting",
        "installation",
        "gauge",
        "What is to go of jobs, by kind: due, or held because something needs it; counted up to 10,000.",
        ("kind", "state"),
    ),
    Metric(
        "presswork_storage_audit_images",
        "installation",
        "gauge",
        "What the last audit of the store that ended found: missing, damaged, requeued images, orphans, deleted ones.",
        ("what",),
    ),
    Metric(
        "presswork_storage_audit_age_seconds",
        "installation",
        "gauge",
        "How long ago the last audit of the store ended; not shown if none did.",
    ),
    Metric(
        "presswork_storage_restore_unaccepted",
        "installation",
        "gauge",
        "1 if no orphan is deleted, because database and store may not belong together.",
    ),
    Metric(
        "presswork_tenants_being_deleted", "installation", "gauge", "Tenants of which something is left to be deleted."
    ),
    Metric(
        "presswork_schema_behind",
        "installation",
        "gauge",
        "By how many revisions the schema is older than the leading scheduler; below 0: it is newer.",
    ),
)
BY_NAME = {metric.name: metric for metric in ALL}
OTHER = "other"  # the value of a label for all beyond its limit
