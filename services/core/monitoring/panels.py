"""Every panel of the dashboard: its title, its unit and its queries, in rows."""

from dataclasses import dataclass

RATE = "$__rate_interval"  # which Grafana fills in from the scrape interval


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are pairs of an expression and the legend of its lines; `unit` is one of Grafana's names."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[{RATE}]))"


def _told(metric: str, by: str) -> str:
    """Of the leading scheduler; two may show it while the lead changes."""
    return f"max by ({by}) ({metric})"


def _ratio(part: str, whole: str) -> str:
    return f"{part} / {whole}"


def _slowest(most: int, metric: str, by: str) -> str:
    return f"topk({most}, histogram_quantile(0.95, {_rate(f'{metric}_bucket', f'le, {by}')}))"


def _of_program(figure: str) -> str:
    """With the program that an address belongs to."""
    return f"{figure} * on (instance) group_left (program) presswork_build_info"


def _quantiles(metric: str, by: str) -> tuple[tuple[str, str], ...]:
    buckets = f"sum by (le, {by}) (rate({metric}_bucket[{RATE}]))"
    return tuple(
        (f"histogram_quantile({part}, {buckets})", f"{name} {{{{{by}}}}}")
        for part, name in ((0.5, "p50"), (0.95, "p95"))
    )


ROWS = (
    Row(
        "Work",
        (
            Panel("Backlog", "s", ((_told("presswork_backlog_seconds", "model"), "{{model}}"),),
                  "Accelerator-seconds queued and rendering: what workers are scaled on."),
            Panel("Images that wait", "short",
                  ((f"sum by (model, priority) ({_told('presswork_queue_images', 'model, priority, lane')})",
                    "{{model}} {{priority}}"),)),
            Panel("Seconds that wait, largest lanes", "s",
                  ((f"topk(10, {_told('presswork_queue_seconds', 'model, lane')})", "{{model}} {{lane}}"),)),
            Panel("Longest wait", "s",
                  ((_told("presswork_queue_oldest_seconds", "model, priority"), "{{model}} {{priority}}"),)),
            Panel("Images that nobody can render, and guessed ones", "short",
                  ((_told("presswork_queue_unserved_images", "model"), "unserved {{model}}"),
                   (_told("presswork_queue_unmeasured_images", "model"), "unmeasured {{model}}"),
                   (_told("presswork_queue_held_images", "model"), "held by quotas {{model}}"))),
            Panel("Images under lease", "short", ((_told("presswork_rendering_images", "model"), "{{model}}"),)),
            Panel("Jobs", "short", ((_told("presswork_jobs", "state"), "{{state}}"),)),
            Panel("Deadlines", "short", ((_told("presswork_deadlines", "state"), "{{state}}"),)),
        ),
    ),
    Row(
        "Accelerators",
        (
            Panel("Accelerators", "short",
                  ((_told("presswork_accelerators", "model, device, state"), "{{model}} {{device}} {{state}}"),)),
            Panel("Busy", "percentunit",
                  ((_ratio(_rate("presswork_worker_busy_seconds_total", "model"),
                           "sum by (model) (presswork_worker_up > 0)"), "{{model}}"),),
                  "The part of their time that devices work on images."),
            Panel("Batches filled", "percentunit",
                  ((_ratio(_rate("presswork_worker_batch_images_total", "model"),
                           f"({_rate('presswork_worker_batch_slots_total', 'model')} > 0)"), "{{model}}"),)),
            Panel("Images", "ops",
                  ((_rate("presswork_worker_images_total", "model, outcome"), "{{model}} {{outcome}}"),)),
            Panel("Failures by cause", "ops",
                  ((_rate("presswork_worker_failures_total", "model, cause"), "{{model}} {{cause}}"),
                   (_rate("presswork_refused_prompts_total", "door"), "prompts refused, {{door}}"))),
            Panel("Rendering a batch", "s", _quantiles("presswork_worker_render_seconds", "model")),
            Panel("Claiming", "s", _quantiles("presswork_worker_claim_seconds", "model")),
            Panel("Encoding a picture", "s", _quantiles("presswork_worker_encode_seconds", "model")),
            Panel("Storing a picture", "s", _quantiles("presswork_worker_store_seconds", "model")),
            Panel("Settling", "s", _quantiles("presswork_worker_settle_seconds", "model")),
            Panel("Store errors", "ops", ((_rate("presswork_worker_store_errors_total", "kind"), "{{kind}}"),
                                          ("sum(presswork_worker_store_away)", "workers that wait for it"))),
            Panel("Claims lost, and images queued again", "ops",
                  ((_rate('presswork_worker_claims_total{verdict="fenced"}', "model"), "fenced {{model}}"),
                   (_rate("presswork_worker_expired_images_total", "model"), "expired, by workers of {{model}}"),
                   (_rate('presswork_periodic_task_rows_total{task="expire"}', "task"), "expired, by schedulers"))),
            Panel("Deaths and sickness", "short",
                  ((f"sum by (model, state) (increase(presswork_worker_child_deaths_total[{RATE}]))",
                    "deaths {{model}} {{state}}"),
                   ("sum by (model) (presswork_worker_device_sick)", "sick {{model}}"),
                   (_told("presswork_worker_silent_seconds", "job"), "longest silence in seconds"))),
        ),
    ),
    Row(
        "Scheduler",
        (
            Panel("Lead", "short",
                  (("sum(presswork_scheduler_leads)", "leaders"),
                   (_rate("presswork_scheduler_ticks_total", "instance"), "rounds a second {{instance}}"),
                   (f"sum by (move) (increase(presswork_scheduler_lead_changes_total[{RATE}]))", "{{move}}"))),
            Panel("Periodic tasks, slowest", "s",
                  ((_slowest(8, "presswork_periodic_task_seconds", "task"), "p95 {{task}}"),)),
            Panel("Rows of periodic tasks", "ops",
                  ((f"topk(8, {_rate('presswork_periodic_task_rows_total', 'task')})", "{{task}}"),)),
            Panel("Failures of tasks", "ops",
                  ((_rate("presswork_periodic_task_failures_total", "task"), "{{task}}"),
                   (_rate('presswork_background_tasks_total{outcome=~"failed|fenced"}', "task, outcome"),
                    "{{task}} {{outcome}}"),
                   (_rate("presswork_scheduler_database_away_total", "instance"), "database away {{instance}}"))),
            Panel("Background tasks", "ops",
                  ((_rate("presswork_background_tasks_total", "task, outcome"), "{{task}} {{outcome}}"),)),
            Panel("Background tasks, seconds", "s", _quantiles("presswork_background_task_seconds", "task")),
            Panel("Background tasks that wait", "short",
                  ((_told("presswork_background_tasks_waiting", "task"), "{{task}}"),)),
            Panel("Webhooks", "ops", ((_rate("presswork_webhook_tries_total", "outcome"), "{{outcome}}"),
                                      (_told("presswork_webhooks_failing", "job"), "failing webhooks"))),
            Panel("Webhooks' answers", "s", _quantiles("presswork_webhook_seconds", "job")),
            Panel("Retention and deleted tenants", "short",
                  ((_told("presswork_retention_waiting", "kind, state"), "{{kind}} {{state}}"),
                   (_told("presswork_tenants_being_deleted", "job"), "tenants"))),
            Panel("Audits of the store", "short",
                  ((_told("presswork_storage_audit_images", "what"), "{{what}}"),
                   (f"{_told('presswork_storage_audit_age_seconds', 'job')} / 86400", "days since the last one"),
                   (_told("presswork_storage_restore_unaccepted", "job"), "a restore is to be accepted"))),
            Panel("Looks at the queue", "s",
                  (("max(presswork_queue_read_seconds)", "seconds of one"),
                   (f"sum(increase(presswork_queue_read_failures_total[{RATE}]))", "failures"),
                   (_told("presswork_queue_looked_at_ratio", "job"), "part of the images that it has read"))),
        ),
    ),
    Row(
        "Web",
        (
            Panel("Answers", "reqps", ((_rate("presswork_http_requests_total", "status"), "{{status}}"),)),
            Panel("Answers, by route", "reqps",
                  ((f"topk(10, {_rate('presswork_http_requests_total', 'method, route')})", "{{method}} {{route}}"),)),
            Panel("First byte, slowest routes", "s",
                  ((_slowest(10, "presswork_http_request_seconds", "route"), "p95 {{route}}"),)),
        ),
    ),
    Row(
        "Programs",
        (
            Panel("Programs", "short",
                  (("count by (program, version) (presswork_build_info)", "{{program}} {{version}}"),)),
            Panel("Schema", "short", ((_told("presswork_schema_behind", "job"), "revisions behind"),)),
            Panel("Disk that is free", "percentunit",
                  (("presswork_disk_free_bytes / presswork_disk_bytes", "{{instance}} {{folder}}"),)),
            Panel("Memory", "bytes",
                  ((_of_program("process_resident_memory_bytes"), "{{program}} {{instance}}"),),
                  "Of a worker, the process that holds the model."),
            Panel("CPUs", "short",
                  ((_of_program(f"rate(process_cpu_seconds_total[{RATE}])"), "{{program}} {{instance}}"),)),
        ),
    ),
)  # fmt: skip
