"""The list of metrics: what is shown of it, checked in and written about is the same."""

import json
import re
from pathlib import Path

import pytest
import yaml

import scheduler.metrics  # noqa: F401  these modules count into the registry
import services.api.metrics
import services.core.policy.refusals
import services.core.webhooks.sending  # noqa: F401
import worker.metrics  # noqa: F401
from services.core.metrics import definitions, registry
from services.core.metrics.definitions import Metric
from services.core.monitoring import alerts, dashboard
from services.core.monitoring.panels import ROWS

ROOT = Path(__file__).parents[2]
CHART = ROOT / "services/chart/monitoring"
PAGE = ROOT / "services/core/monitoring/METRICS.md"
OF = {
    "every": "Every program", "web": "Web servers", "doors": "Web servers and schedulers", "scheduler": "Schedulers",
    "worker": "Workers",
    "installation": "The installation, told by the scheduler that leads",
}  # fmt: skip
READ = {  # when they are asked for, by collectors; the others are counted
    "presswork_scheduler_leads", "presswork_worker_up", "presswork_worker_child_deaths_total",
    *(metric.name for metric in definitions.ALL if metric.of in ("every", "installation")),
}  # fmt: skip


def line(metric: Metric) -> str:
    labels = f"{{{', '.join(metric.labels)}}}" if metric.labels else ""
    return f"| `{metric.name}{labels}` | {metric.kind} | {metric.text} |"


def test_the_page_lists_each_metric_under_its_program_and_no_other() -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: re.findall(r"^\| `.*$", section, re.MULTILINE) for section in sections}
    assert found == {title: [line(metric) for metric in definitions.ALL if metric.of == of] for of, title in OF.items()}


def test_each_metric_of_the_list_is_counted_somewhere_and_no_other() -> None:
    counted = {name for name in registry.REGISTRY._names_to_collectors if name in definitions.BY_NAME}
    assert counted | READ == set(definitions.BY_NAME)


def test_no_two_metrics_are_one_family_and_none_names_a_tenant() -> None:
    families = [metric.name.removesuffix("_total") for metric in definitions.ALL]
    assert len(set(families)) == len(families)
    for metric in definitions.ALL:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert not {"tenant", "key", "user", "prompt", "job"} & {*metric.labels}


def test_panels_ask_for_metrics_that_there_are_and_leave_none_out() -> None:
    asked = set()
    for row in ROWS:
        for panel in row.panels:
            for expr, _ in panel.queries:
                asked |= set(re.findall(r"presswork_\w+", expr))
    known = set(definitions.BY_NAME)
    histograms = {f"{metric.name}_bucket" for metric in definitions.ALL if metric.kind == "histogram"}
    assert asked <= known | histograms
    assert known - {name.removesuffix("_bucket") for name in asked} == set()


@pytest.mark.parametrize(
    ("name", "made"), [("dashboard.json", dashboard.dashboard()), ("alerts.yaml", alerts.rules())]
)  # fmt: skip
def test_what_the_chart_ships_is_what_the_list_makes(name: str, made: object) -> None:
    text = (CHART / name).read_text()
    assert (json.loads(text) if name.endswith(".json") else yaml.safe_load(text)) == made, (
        f"write it anew: presswork metrics {name.partition('.')[0]} -o services/chart/monitoring/{name}"
    )


def test_panels_lie_side_by_side_and_have_ids_of_their_own() -> None:
    panels = dashboard.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
