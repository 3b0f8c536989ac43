"""Schemathesis on the document that the API publishes: all its checks, a thousand examples and more."""

import re
import subprocess
import sys
from pathlib import Path

from tests.web import Api

EXAMPLES = 1_000


def test_no_request_that_the_document_allows_or_forbids_is_answered_out_of_line(api: Api, tmp_path: Path) -> None:
    """Nobody renders, so images are asked for without waiting."""
    settings = Path(__file__).with_name("schemathesis.toml")
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", settings, "run", f"{api.url}/openapi.json",
        "-H", f"Authorization: Bearer {api.key}", "-H", "Prefer: respond-async", "--checks", "all",
        "--max-examples", "25", "--seed", "1", "--no-shrink", "--continue-on-failure", "--max-redirects", "0",
        "--warnings", "off",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated is not None
    assert int(generated[1]) >= EXAMPLES
    assert api.http.get("/readyz").status_code == 200
