"""Tables with much to say, on a terminal of eighty columns: nothing is left out, and no column is a letter wide."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from services.cli import show
from services.core.model import scopes
from services.core.tenants.api_keys import Key

NOW = datetime.now(UTC)
KEYS = [
    Key("uesFqUBV", "default", "local", scopes.ALL, "active", NOW, NOW, None, None, "up", None),
    Key("28ADKRET", "press-agency", "the wall display", scopes.ALL[:2], "revoked", NOW, None, None, NOW, "up", None),
    Key("3ADgZn2w", "lab", "nightly run", scopes.ALL[:3], "expired", NOW, NOW, NOW, None, "up", None),
]
ACTIONS: list[Any] = [
    {"at": (NOW - timedelta(days=1)).isoformat(), "actor": "key/uesFqUBV", "actor_name": "local", "data": {"keys": 2},
     "verb": "tenant.delete_requested", "subject": "tenant_0000000000003"},
    {"at": NOW.isoformat(), "actor": "scheduler", "actor_name": None, "verb": "job.retried",
     "subject": "job_03a9wm8bczvve", "data": {}},
]  # fmt: skip
WORKERS: list[Any] = [
    {"id": "gpu-host-7:0:1a2b3c4d", "host": "gpu-host-7", "device": "NVIDIA H100 80GB HBM3", "model": "decidiffusion",
     "batch_sizes": [1, 4, 16], "state": "busy", "drained": True, "silent_seconds": 0.4, "doing": "rendering",
     "rates": [{"size": "512x512", "num_inference_steps": 16, "seconds": 0.12}], "scorers": [], "batch": None},
]  # fmt: skip
TABLES = {
    "keys": (show.keys(KEYS), ["pw_28ADKRET", "display", "operate", "all", "never", "revoked", "expired"]),
    "actions": (show.actions(ACTIONS), ["tenant.delete_requested", "tenant_0000000000003", "keys 2", "job.retried"]),
    "workers": (
        show.workers(WORKERS),
        ["gpu-host-7:0:1a2b3c4d", "H100", "decidiffusion", "16", "0.12 s", "drained", "rendering", "<1 s"],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_eighty_columns_says_all_of_it_in_a_few_lines(name: str) -> None:
    table, words = TABLES[name]
    lines = shown(table)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 14
    for word in words:
        assert word in "\n".join(lines)


def shown(table: RenderableType) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    return stream.getvalue().splitlines()
