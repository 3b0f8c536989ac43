"""What a scheduler counts of itself. The tasks' names are those of the timetable."""

from services.core.metrics import registry

TICKS = registry.counter("presswork_scheduler_ticks_total")
LEADS = registry.counter("presswork_scheduler_lead_changes_total")
DATABASE_AWAY = registry.counter("presswork_scheduler_database_away_total")
TASK_SECONDS = registry.histogram("presswork_periodic_task_seconds")
TASK_FAILURES = registry.counter("presswork_periodic_task_failures_total")
TASK_ROWS = registry.counter("presswork_periodic_task_rows_total")
BACKGROUND = registry.counter("presswork_background_tasks_total")
BACKGROUND_SECONDS = registry.histogram("presswork_background_task_seconds")
LOOK_FAILURES = registry.counter("presswork_queue_read_failures_total")
LOOK_SECONDS = registry.gauge("presswork_queue_read_seconds")
OUTCOMES = ("done", "postponed", "failed", "fenced")


def expect(periodic: list[str], background: list[str]) -> None:
    """Shows zeros for what has not happened yet, so that the first time it does is a change."""
    for move in ("taken", "lost"):
        LEADS.labels(move)
    for name in periodic:
        TASK_FAILURES.labels(name)
        TASK_ROWS.labels(name)
    for name in background:
        for outcome in OUTCOMES:
            BACKGROUND.labels(name, outcome)
