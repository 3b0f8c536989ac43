"""The dashboard's files: those of others are what their packages have, and none names another host."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from services.dashboard import files, policy, words

ROOT = Path(__file__).parents[2]
VENDORS = (ROOT / "services/dashboard/static/vendor", ROOT / "tests/dashboard/vendor")


@pytest.mark.parametrize("folder", VENDORS, ids=("shipped", "tests"))
def test_a_file_of_others_is_what_its_package_has_and_nothing_lies_beside(folder: Path) -> None:
    recorded = tomllib.loads((folder / "vendored.toml").read_text())["file"]
    for entry in recorded:
        assert hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest() == entry["sha256"]
        assert entry["licence"] in ("0BSD", "MIT", "MPL-2.0")
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
    assert {path.name for path in folder.iterdir()} == {"vendored.toml", *(entry["name"] for entry in recorded)}


def test_no_file_of_ours_names_another_host() -> None:
    for name, content in files.FILES.items():
        if not name.startswith("vendor/"):
            found = set(re.findall(rb"https?://[^\s\"')]+", content)) - {b"http://www.w3.org/2000/svg"}
            assert not found, name


def test_no_template_has_a_script_a_style_or_a_handler_of_its_own() -> None:
    """The policy would refuse them; a value that a client sent stands in no script."""
    for path in (ROOT / "services/dashboard/templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|hx-on|javascript:|\|\s*safe|Markup", text), path.name
        assert all("src=" in tag and tag.endswith("></script>") for tag in re.findall(r"<script.*", text)), path.name


def test_pages_may_run_no_script_that_stands_in_them_and_nobody_frames_them() -> None:
    assert "unsafe" not in policy.POLICY
    assert "frame-ancestors 'none'" in policy.POLICY
    assert policy.POLICY.startswith("default-src 'none';")


def test_the_bounds_of_a_time_are_said_once_if_they_are_the_same_in_words() -> None:
    assert words.between(65.2, 64.9) == words.between(None, None) == ""
    assert words.between(50, 7260) == "50 s to 2 h 1 min"
