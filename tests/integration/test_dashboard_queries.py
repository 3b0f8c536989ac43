"""Every query of the dashboard and every alert against a real Prometheus, which reads real programs of ours."""

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from services.core.auditing import audits
from services.core.db.database import Database
from services.core.monitoring import alerts
from services.core.monitoring.panels import RATE, ROWS
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import factories, receiving
from tests.processes import Process
from tests.prometheus import Prometheus, free_port, needs_prometheus, scraping
from tests.waiting import until

pytestmark = needs_prometheus
WINDOW = "30s"  # in the place of Grafana's interval
QUERIES = [(panel.title, expr) for row in ROWS for panel in row.panels for expr, _ in panel.queries]


@pytest.fixture
def prometheus(
    environ: dict[str, str], settings: Settings, database: Database, store: S3Store, tmp_path: Path
) -> Iterator[Prometheus]:
    """Of a web server, a scheduler and a worker that have rendered, failed, exported, audited and sent."""
    ports = {name: free_port() for name in ("web", "scheduler", "worker")}
    extra = {
        "PRESSWORK_PORT": str(ports["web"]), "PRESSWORK_SIMULATED_FAULTS": "1", "PRESSWORK_SIMULATED_IMAGE_MS": "20",
        "PRESSWORK_WEBHOOK_NETWORKS": "127.0.0.1", "PRESSWORK_WEBHOOK_HTTP": "1",
    }  # fmt: skip
    modules = {"web": "services.web", "scheduler": "scheduler.app", "worker": "worker.app"}
    running = []
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(alerts.rules()))
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, settings.secret, factories.TENANT, "test")
        audits.request(connection, 0.0)
    try:
        for name, module in modules.items():
            shown = {} if name == "web" else {"PRESSWORK_METRICS_PORT": str(ports[name])}
            running.append(Process(module, {**environ, **extra, **shown}, tmp_path / f"{name}.log"))
        with receiving.receiving() as receiver, scraping(ports, rules) as found:
            until(lambda: len(found.query("presswork_build_info")) == len(ports))
            until(lambda: found.query("presswork_worker_up == 1"))
            receiving.make(database, receiving.to_this_machine(settings), receiver.url)
            _work(f"http://127.0.0.1:{ports['web']}", key)
            until(lambda: receiver.came)
            yield found
    finally:
        for process in running:
            process.kill()


def _work(url: str, key: str) -> None:
    """A job that fails in part and is exported, and a long one that is still at work when this returns."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        images = [{"prompt": f"a {number}", "size": "64x64"} for number in range(6)] + [{"prompt": "fault:raise"}]
        job = http.post("/v1/jobs", json={"images": images}).json()["id"]
        http.post("/v1/jobs", json={"images": [{"prompt": "b", "size": "64x64", "n": 600}], "priority": "low"})
        until(lambda: http.get(f"/v1/jobs/{job}").json()["status"] in ("completed", "failed"))
        assert http.post(f"/v1/jobs/{job}/exports", json={"format": "zip"}).is_success


def test_each_query_returns_data_and_no_alert_of_a_healthy_installation_is_true(prometheus: Prometheus) -> None:
    empty = dict.fromkeys(QUERIES)

    def ask() -> bool:
        for title, expr in list(empty):
            values = [float(line["value"][1]) for line in prometheus.query(expr.replace(RATE, WINDOW))]
            if any(not math.isnan(one) for one in values):
                del empty[title, expr]
        return not empty

    try:
        until(ask, seconds=30, every=0.5)
    except AssertionError:
        pytest.fail(f"no data: {list(empty)}")
    firing = {line["metric"]["alertname"] for line in prometheus.query('ALERTS{alertstate="firing"}')}
    assert not firing - {"PressworkDiskFull"}  # this machine's own disk
    evaluated = prometheus.query("prometheus_rule_evaluation_failures_total")
    assert all(line["value"][1] == "0" for line in evaluated)
