"""Each alert fires on what it is for, and on nothing near it; and its test fails if a threshold is turned round."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from services.cli.app import app
from services.core.metrics import definitions
from services.core.monitoring import alerts
from services.core.monitoring.alerts import Alert
from tests.prometheus import needs_promtool, promtool

ROOT = Path(__file__).parents[2]
Series = dict[str, str]  # by its labels, its values of each minute, as promtool writes them
_COMPARISON = re.compile(r" ([<>]) ")


@dataclass(frozen=True)
class Case:
    """On `fires`, the alert fires at that minute with these labels and this text; on each of `quiet` it never does."""

    fires: Series
    at: int
    labels: dict[str, str]
    text: str
    quiet: tuple[Series, ...]


M = 'model="m"'
CASES = {
    "PressworkUnserved": Case(
        {f"presswork_queue_unserved_images{{{M}}}": "40x30"}, 11, {"model": "m"},
        "40 images wait for m, and no live worker can render them.",
        ({f"presswork_queue_unserved_images{{{M}}}": "0x30"}, {f"presswork_queue_unserved_images{{{M}}}": "40x8 0x20"}),
    ),
    "PressworkStalled": Case(
        {f"presswork_backlog_seconds{{{M}}}": "7x60", f'presswork_worker_images_total{{{M},outcome="done"}}': "9x60"},
        40, {"model": "m"}, "Work waits for m, and no image of it was finished for 15 minutes.",
        (
            {f"presswork_backlog_seconds{{{M}}}": "7x60",
             f'presswork_worker_images_total{{{M},outcome="done"}}': "0+1x60"},
            {f"presswork_backlog_seconds{{{M}}}": "0x60"},
            {'presswork_backlog_seconds{model="other"}': "7x60"},  # workers have their models' own names
            {'presswork_backlog_seconds{model="revision-0123456789ab"}': "7x60"},
        ),
    ),
    "PressworkOldestWait": Case(
        {f'presswork_queue_oldest_seconds{{{M},priority="high"}}': "1200x20"}, 6, {"model": "m"},
        "A job for m has waited for 20m 0s.",
        (
            {f'presswork_queue_oldest_seconds{{{M},priority="high"}}': "800x20"},
            {f'presswork_queue_oldest_seconds{{{M},priority="normal"}}': "14000x20"},
            {f'presswork_queue_oldest_seconds{{{M},priority="low"}}': "86000x20"},
        ),
    ),
    "PressworkImagesFail": Case(
        {f'presswork_worker_images_total{{{M},outcome="failed"}}': "0+10x60",
         f'presswork_worker_images_total{{{M},outcome="done"}}': "0+90x60"},
        40, {"model": "m"}, "10% of the images of m fail.",
        (
            {f'presswork_worker_images_total{{{M},outcome="failed"}}': "0+4x60",
             f'presswork_worker_images_total{{{M},outcome="done"}}': "0+96x60"},
        ),
    ),
    "PressworkStoreRefuses": Case(
        {'presswork_worker_store_errors_total{model="m",kind="refused"}': "0+6x30"}, 12, {},
        "The object store refuses pictures: rights, a key, or a full bucket.",
        (
            {'presswork_worker_store_errors_total{model="m",kind="refused"}': "5x30"},
            {'presswork_worker_store_errors_total{model="m",kind="unavailable"}': "0+6x30"},
        ),
    ),
    "PressworkStoreAway": Case(
        {f"presswork_worker_store_away{{{M}}}": "1x20"}, 6, {},
        "1 workers claim nothing, because the object store does not take their pictures.",
        ({f"presswork_worker_store_away{{{M}}}": "0x20"}, {f"presswork_worker_store_away{{{M}}}": "1x3 0x20"}),
    ),
    "PressworkDeviceSick": Case(
        {f'presswork_accelerators{{{M},device="cuda",state="sick"}}': "2x20"}, 6, {"model": "m", "device": "cuda"},
        "2 devices (cuda) of m fail their test image.",
        (
            {f'presswork_accelerators{{{M},device="cuda",state="busy"}}': "2x20"},
            {f'presswork_accelerators{{{M},device="cuda",state="sick"}}': "0x20"},
        ),
    ),
    "PressworkWorkerSilent": Case(
        {f'presswork_accelerators{{{M},device="cuda",state="silent"}}': "1x20"}, 3, {"model": "m", "device": "cuda"},
        "1 workers of m have not been heard of.",
        ({f'presswork_accelerators{{{M},device="cuda",state="silent"}}': "0x20"},),
    ),
    "PressworkWorkerCrashes": Case(
        {f'presswork_worker_child_deaths_total{{{M},state="ready"}}': "0+1x20"}, 16, {"model": "m"},
        "The processes that hold m have died 15 times in 15 minutes.",
        ({f'presswork_worker_child_deaths_total{{{M},state="ready"}}': "0x5 1x5 2x30"},),
    ),
    "PressworkDeadlineAtRisk": Case(
        {'presswork_deadlines{state="at_risk"}': "1x20"}, 2, {},
        "1 runs of schedules will probably miss their deadlines.",
        ({'presswork_deadlines{state="at_risk"}': "0x20", 'presswork_deadlines{state="on_time"}': "9x20"},),
    ),
    "PressworkDeadlineMissed": Case(
        {'presswork_deadlines{state="missed"}': "1x20"}, 2, {},
        "1 runs of schedules have missed their deadlines and still go on.",
        ({'presswork_deadlines{state="missed"}': "0x20"},),
    ),
    "PressworkDiskFull": Case(
        {'presswork_disk_free_bytes{folder="temporary",instance="a"}': "5x20",
         'presswork_disk_bytes{folder="temporary",instance="a"}': "100x20"},
        6, {"folder": "temporary", "instance": "a"}, "5% of the disk under the folder temporary of a is free.",
        (
            {'presswork_disk_free_bytes{folder="temporary",instance="a"}': "11x20",
             'presswork_disk_bytes{folder="temporary",instance="a"}': "100x20"},
        ),
    ),
    "PressworkSchemaBehind": Case(
        {"presswork_schema_behind": "2x20"}, 6, {}, "The database's schema is 2 revisions behind the programs.",
        ({"presswork_schema_behind": "0x20"}, {"presswork_schema_behind": "-1x20"}),
    ),
    "PressworkSchemaAhead": Case(
        {"presswork_schema_behind": "-1x90"}, 61, {},
        "The database's schema is newer than a scheduler that leads: an upgrade has stopped half-way.",
        ({"presswork_schema_behind": "0x90"}, {"presswork_schema_behind": "1x90"}),
    ),
    "PressworkNobodyLeads": Case(
        {'presswork_scheduler_leads{instance="a"}': "0x20", 'presswork_scheduler_leads{instance="b"}': "0x20"}, 3, {},
        "No scheduler leads, or none is scraped: jobs do not finish, and figures of the queue are missing.",
        ({'presswork_scheduler_leads{instance="a"}': "0x20", 'presswork_scheduler_leads{instance="b"}': "1x20"},),
    ),
    "PressworkQueueUnread": Case(
        {"presswork_queue_read_failures_total": "0+2x30"}, 12, {},
        "The scheduler that leads cannot read the queue: its figures are missing, and alerts on them are silent.",
        ({"presswork_queue_read_failures_total": "9x30"}, {"presswork_queue_read_failures_total": "0x5 1x5 2x30"}),
    ),
    "PressworkTasksFail": Case(
        {'presswork_background_tasks_total{task="export",outcome="failed"}': "0+1x40"}, 31, {"task": "export"},
        "The scheduler's task export fails.",
        (
            {'presswork_background_tasks_total{task="export",outcome="done"}': "0+1x40"},
            {'presswork_background_tasks_total{task="export",outcome="failed"}': "0x5 1x5 2x30"},
            {'presswork_periodic_task_failures_total{task="fold"}': "0x5 1x5 2x30"},
        ),
    ),
    "PressworkWebhooksFail": Case(
        {"presswork_webhooks_failing": "3x90"}, 61, {}, "3 webhooks have failed for an hour.",
        ({"presswork_webhooks_failing": "0x90"}, {"presswork_webhooks_failing": "3x50 0x40"}),
    ),
    "PressworkErrors": Case(
        {'presswork_http_requests_total{status="5xx"}': "0+2x30",
         'presswork_http_requests_total{status="2xx"}': "0+98x30"},
        12, {}, "2% of the answers are server errors.",
        (
            {'presswork_http_requests_total{status="5xx"}': "0+1x30",
             'presswork_http_requests_total{status="2xx"}': "0+199x30"},
        ),
    ),
}  # fmt: skip
# Of a condition with several halves, each fires on its own.
MORE = {
    "PressworkOldestWait": (
        {f'presswork_queue_oldest_seconds{{{M},priority="normal"}}': "15000x20"},
        {f'presswork_queue_oldest_seconds{{{M},priority="low"}}': "90000x20"},
    ),
    "PressworkTasksFail": ({'presswork_periodic_task_failures_total{task="export"}': "0+1x40"},),
    "PressworkNobodyLeads": ({"presswork_nothing": "1x20"},),
}
MUTANTS = [
    pytest.param(alert, number, id=f"{alert.name}-{number}")
    for alert in alerts.ALL
    for number in range(len(_COMPARISON.findall(alert.expr)))
]


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == {alert.name for alert in alerts.ALL}


@needs_promtool
def test_each_alert_fires_on_what_it_is_for_and_on_nothing_near_it(tmp_path: Path) -> None:
    found = _run(tmp_path, {alert.name: alert for alert in alerts.ALL})
    assert found == "", found


@needs_promtool
@pytest.mark.parametrize(("alert", "number"), MUTANTS)
def test_with_a_threshold_turned_round_the_alert_fails_its_test(alert: Alert, number: int, tmp_path: Path) -> None:
    assert _run(tmp_path, {alert.name: _turned(alert, number)})


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(alerts.rules()))
    found = promtool("check", "rules", rules)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_an_entry_in_the_runbook_that_its_annotation_leads_to() -> None:
    entries = re.findall(r"^## (\w+)$", (ROOT / alerts.RUNBOOK).read_text(), re.MULTILINE)
    assert entries == [alert.name for alert in alerts.ALL]
    for rule in alerts.rules()["groups"][0]["rules"]:
        assert rule["annotations"]["runbook"] == f"{alerts.RUNBOOK}#{rule['alert'].lower()}"


def test_the_runbook_s_commands_are_commands() -> None:
    found = set(re.findall(r"`presswork ([a-z -]+)", (ROOT / alerts.RUNBOOK).read_text()))
    assert len(found) > 8
    for words in found:
        command = get_command(app)
        for word in words.split():
            if hasattr(command, "commands"):  # else an argument
                assert word in command.commands, f"presswork {words}"
                command = command.commands[word]
        assert not hasattr(command, "commands"), f"presswork {words}: which of its commands?"


def test_alerts_name_metrics_that_there_are() -> None:
    for alert in alerts.ALL:
        named = set(re.findall(r"presswork_\w+", alert.expr))
        assert named and named <= set(definitions.BY_NAME), alert.name


def _turned(alert: Alert, number: int) -> Alert:
    """The alert with its nth comparison turned round."""
    found = list(_COMPARISON.finditer(alert.expr))[number]
    other = " < " if found[1] == ">" else " > "
    expr = alert.expr[: found.start()] + other + alert.expr[found.end() :]
    return Alert(alert.name, alert.severity, expr, alert.lasting, alert.text)


def _run(folder: Path, chosen: dict[str, Alert]) -> str:
    """What promtool finds wrong with these alerts; nothing if they are right."""
    rules = {"groups": [{"name": "presswork", "rules": [alerts.rule(alert) for alert in chosen.values()]}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = [test for name in chosen for test in _tests(chosen[name])]
    written = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(yaml.safe_dump(written))
    found = promtool("test", "rules", folder / "tests.yaml")
    return "" if found.returncode == 0 else found.stdout + found.stderr


def _tests(alert: Alert) -> list[dict[str, Any]]:
    case = CASES[alert.name]
    firing = {
        "exp_labels": {**case.labels, "severity": alert.severity},
        "exp_annotations": {"summary": case.text, "runbook": f"{alerts.RUNBOOK}#{alert.name.lower()}"},
    }
    fires = [_test(alert, case.fires, case.at, [firing])]
    if alert.lasting != "0m":
        fires.append(_test(alert, case.fires, 0, []))
    quiet = [_test(alert, series, case.at, []) for series in case.quiet]
    return fires + quiet + [_counted(alert, series, case.at) for series in MORE.get(alert.name, ())]


def _test(alert: Alert, series: Series, at: int, expected: list[Any]) -> dict[str, Any]:
    return {
        **_input(series),
        "alert_rule_test": [{"alertname": alert.name, "eval_time": f"{at}m", "exp_alerts": expected}],
    }


def _counted(alert: Alert, series: Series, at: int) -> dict[str, Any]:
    """That one alert fires, whatever it says."""
    expr = f'count(ALERTS{{alertname="{alert.name}",alertstate="firing"}})'
    return {
        **_input(series),
        "promql_expr_test": [
            {"expr": expr, "eval_time": f"{at}m", "exp_samples": [{"labels": "{}", "value": 1}]},
        ],
    }


def _input(series: Series) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
    }
