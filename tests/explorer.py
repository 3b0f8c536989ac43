"""Schemathesis, let loose on an API with the document that it publishes."""

import re
import subprocess
import sys
from pathlib import Path

from tests.web import Api

_SETTINGS = Path(__file__).with_name("schemathesis.toml")


def explore(api: Api, folder: Path, *, examples: int) -> int:
    """Sends up to `examples` drawn requests to each operation, besides all those that its schema suggests, and makes
    all checks of the answers; returns how many requests that were. Nobody renders, so images are asked for without
    waiting. AssertionError: an answer is out of line."""
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", _SETTINGS, "run", f"{api.url}/openapi.json",
        "-H", f"Authorization: Bearer {api.key}", "-H", "Prefer: respond-async", "--checks", "all",
        "--max-examples", str(examples), "--seed", "1", "--no-shrink", "--continue-on-failure", "--max-redirects", "0",
        "--warnings", "off",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated is not None, run.stdout[-2_000:]
    return int(generated[1])
