"""A real Prometheus, and promtool, from Debian's package. Tests that need them are skipped, and say so, without."""

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.waiting import until

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
_WHY = "Prometheus is not installed: apt-get install prometheus"
needs_prometheus = pytest.mark.skipif(not PROMETHEUS, reason=_WHY)
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason=_WHY)


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """What an expression says now: a list of `metric` (its labels) and `value` (a time and a text)."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, trust_env=False).json()
        assert answer["status"] == "success", (expr, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def scraping(jobs: Mapping[str, int], rules: Path | None = None) -> Iterator[Prometheus]:
    """A Prometheus that reads these ports of this machine every second; the ports by the name of their job."""
    assert PROMETHEUS
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)] if rules else [],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{number}"]}]}
                for job, number in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                   f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
        with (folder / "log").open("w") as log:
            running = subprocess.Popen([PROMETHEUS, *options], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: running.poll() is not None or _is_ready(url))
            assert running.poll() is None, (folder / "log").read_text()
            yield Prometheus(url)
        finally:
            running.kill()
            running.wait()


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
