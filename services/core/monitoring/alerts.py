"""Every alert there is, as Prometheus evaluates it. RUNBOOK.md says for each what to do.

Workers know their model's name alone, so what is summed up as `other`, and a revision that no name has any more, are
compared with no worker's counts.

The figures of the installation come from the scheduler that leads. While the lead changes, two may show them: `max`
takes one. Thresholds are a start for an installation that renders day and night; what an hour of waiting means is its
own to say.
"""

from dataclasses import dataclass
from typing import Any, Literal

from services.core.metrics.definitions import OTHER

RUNBOOK = "services/core/monitoring/RUNBOOK.md"


@dataclass(frozen=True, slots=True)
class Alert:
    """It fires once `expr` has held for `lasting`, a duration of Prometheus. `text` may use its labels."""

    name: str
    severity: Literal["page", "ticket"]
    expr: str
    lasting: str
    text: str


ALL = (
    Alert(
        "PressworkUnserved",
        "page",
        "max by (model) (presswork_queue_unserved_images) > 0",
        "10m",
        "{{ $value }} images wait for {{ $labels.model }}, and no live worker can render them.",
    ),
    Alert(
        "PressworkStalled",
        "page",
        f'max by (model) (presswork_backlog_seconds{{model!~"{OTHER}|revision-[0-9a-f]{{12}}"}}) > 0 unless on (model) '
        'sum by (model) (increase(presswork_worker_images_total{outcome=~"done|reused|failed"}[15m])) > 0',
        "15m",
        "Work waits for {{ $labels.model }}, and no image of it was finished for 15 minutes.",
    ),
    Alert(
        "PressworkOldestWait",
        "ticket",
        'max by (model) (presswork_queue_oldest_seconds{priority="high"}) > 900 or '
        'max by (model) (presswork_queue_oldest_seconds{priority="normal"}) > 14400 or '
        "max by (model) (presswork_queue_oldest_seconds) > 86400",
        "5m",
        "A job for {{ $labels.model }} has waited for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "PressworkImagesFail",
        "page",
        'sum by (model) (rate(presswork_worker_images_total{outcome="failed"}[15m])) / '
        'sum by (model) (rate(presswork_worker_images_total{outcome=~"done|reused|failed"}[15m])) > 0.05',
        "10m",
        "{{ $value | humanizePercentage }} of the images of {{ $labels.model }} fail.",
    ),
    Alert(
        "PressworkStoreRefuses",
        "page",
        'sum(rate(presswork_worker_store_errors_total{kind="refused"}[5m])) > 0',
        "5m",
        "The object store refuses pictures: rights, a key, or a full bucket.",
    ),
    Alert(
        "PressworkStoreAway",
        "page",
        "sum(presswork_worker_store_away) > 0",
        "5m",
        "{{ $value }} workers claim nothing, because the object store does not take their pictures.",
    ),
    Alert(
        "PressworkDeviceSick",
        "ticket",
        'max by (model, device) (presswork_accelerators{state="sick"}) > 0',
        "5m",
        "{{ $value }} devices ({{ $labels.device }}) of {{ $labels.model }} fail their test image.",
    ),
    Alert(
        "PressworkWorkerSilent",
        "ticket",
        'max by (model, device) (presswork_accelerators{state="silent"}) > 0',
        "2m",
        "{{ $value }} workers of {{ $labels.model }} have not been heard of.",
    ),
    Alert(
        "PressworkWorkerCrashes",
        "ticket",
        "sum by (model) (increase(presswork_worker_child_deaths_total[15m])) > 3",
        "0m",
        "The processes that hold {{ $labels.model }} have died {{ $value | humanize }} times in 15 minutes.",
    ),
    Alert(
        "PressworkDeadlineAtRisk",
        "page",
        'max(presswork_deadlines{state="at_risk"}) > 0',
        "1m",
        "{{ $value }} runs of schedules will probably miss their deadlines.",
    ),
    Alert(
        "PressworkDeadlineMissed",
        "ticket",
        'max(presswork_deadlines{state="missed"}) > 0',
        "0m",
        "{{ $value }} runs of schedules have missed their deadlines and still go on.",
    ),
    Alert(
        "PressworkDiskFull",
        "page",
        "presswork_disk_free_bytes / presswork_disk_bytes < 0.1",
        "5m",
        "{{ $value | humanizePercentage }} of the disk under the folder {{ $labels.folder }} of {{ $labels.instance }} "
        "is free.",
    ),
    Alert(
        "PressworkSchemaBehind",
        "page",
        "max(presswork_schema_behind) > 0",
        "5m",
        "The database's schema is {{ $value }} revisions behind the programs.",
    ),
    Alert(
        "PressworkSchemaAhead",
        "ticket",
        "min(presswork_schema_behind) < 0",
        "1h",
        "The database's schema is newer than a scheduler that leads: an upgrade has stopped half-way.",
    ),
    Alert(
        "PressworkNobodyLeads",
        "page",
        "(max(presswork_scheduler_leads) or vector(0)) < 1",
        "2m",
        "No scheduler leads, or none is scraped: jobs do not finish, and figures of the queue are missing.",
    ),
    Alert(
        "PressworkQueueUnread",
        "page",
        "sum(increase(presswork_queue_read_failures_total[10m])) > 3",
        "5m",
        "The scheduler that leads cannot read the queue: its figures are missing, and alerts on them are silent.",
    ),
    Alert(
        "PressworkTasksFail",
        "ticket",
        "sum by (task) (increase(presswork_periodic_task_failures_total[30m])) > 3 or "
        'sum by (task) (increase(presswork_background_tasks_total{outcome="failed"}[30m])) > 3',
        "0m",
        "The scheduler's task {{ $labels.task }} fails.",
    ),
    Alert(
        "PressworkWebhooksFail",
        "ticket",
        "max(presswork_webhooks_failing) > 0",
        "1h",
        "{{ $value }} webhooks have failed for an hour.",
    ),
    Alert(
        "PressworkErrors",
        "page",
        'sum(rate(presswork_http_requests_total{status="5xx"}[5m])) / '
        "sum(rate(presswork_http_requests_total[5m])) > 0.01",
        "5m",
        "{{ $value | humanizePercentage }} of the answers are server errors.",
    ),
)


def rules() -> dict[str, Any]:
    """A file of rules for Prometheus, and the `spec` of a PrometheusRule."""
    return {"groups": [{"name": "presswork", "rules": [rule(alert) for alert in ALL]}]}


def rule(alert: Alert) -> dict[str, Any]:
    annotations = {"summary": alert.text, "runbook": f"{RUNBOOK}#{alert.name.lower()}"}
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": annotations,
    }
