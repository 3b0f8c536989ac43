"""Schemathesis, let loose on an API with the document that it publishes."""

import re
import subprocess
import sys
from pathlib import Path

from tests.web import Api

_SETTINGS = Path(__file__).with_name("schemathesis.toml")


def explore(api: Api, folder: Path, *, examples: int, suggested: bool) -> int:
    """Sends up to `examples` drawn requests to each operation, right ones and wrong ones, and makes all checks of the
    answers; returns how many requests that were. `suggested`: besides, all requests that its schema suggests, some
    seventy for each operation. Nobody renders, so images are asked for without waiting. AssertionError: an answer is
    out of line."""
    phases = ["examples", *(["coverage"] if suggested else []), "fuzzing", "stateful"]
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", _SETTINGS, "run", f"{api.url}/openapi.json",
        "-H", f"Authorization: Bearer {api.key}", "-H", "Prefer: respond-async", "--checks", "all",
        "--phases", ",".join(phases),
        "--max-examples", str(examples), "--seed", "1", "--no-shrink", "--continue-on-failure", "--max-redirects", "0",
        "--warnings", "off",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated is not None, run.stdout[-2_000:]
    return int(generated[1])
