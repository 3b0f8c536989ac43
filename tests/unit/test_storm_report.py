"""The page of a storm's results and its chart."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.storm import chart, report
from tests.storm.plan import Plan

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def storm() -> dict[str, object]:
    """The report of a whole storm that took half an hour."""
    plan = Plan(1)
    times = [(1800 * number / plan.counts.total(), kind) for number, kind in enumerate(plan.faults)]
    return {
        "seed": 1, "share": 1.0, "seconds": 1900, "jobs": 58, "faults": dict(plan.counts), "stops": {"fenced": 77},
        "fenced": 91, "reads": 123_456, "wrong_reads": 0, "requests": 7, "images": 51_040, "lost": 0, "twice": 0,
        "wrong": 0, "failed": 0, "leases_lost": 5_432, "in_shards": 8_333,
        "timeline": [(4.7 * step, 127 * step) for step in range(400)], "times": times,
    }  # fmt: skip


def test_the_chart_of_a_whole_storm_is_a_small_picture_that_shows_every_group_of_faults(storm: dict[str, object]):
    drawn = chart.draw(storm)

    assert len(drawn) < 30_000
    words = [text.text for text in ET.fromstring(drawn).iter(f"{SVG}text")]
    assert "kill -9: 1,000" in words
    assert "Redis wiped, killed, refusing: 50" in words
    assert "power cut: 5" in words
    assert "prefers-color-scheme:dark" in drawn


def test_each_kind_of_fault_is_in_one_row_of_the_chart():
    kinds = [kind for group in chart.GROUPS.values() for kind in group]

    assert sorted(kinds) == sorted(Plan(1).counts)
    assert chart.counts({"a new kind": 3, "cut the power": 1}) == {"power cut": 1, "a new kind": 3}


def test_the_page_shows_the_reports_figures_and_is_written_again_in_its_place(
    storm: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page, drawn = tmp_path / "README.md", tmp_path / "results.svg"
    page.write_text(f"# Tests\n{report.BEGIN}\nold\n{report.END}\nmore\n")
    (tmp_path / "storm.json").write_text(json.dumps({**storm, "wrong": 3}))
    rival = {"faults": {"cut the power": 4}, "images": 1_235, "lost": 234, "wrong": 12}
    (tmp_path / "rivals.json").write_text(json.dumps({"celery": rival}))
    told = [str(tmp_path), "--page", str(page), "--chart", str(drawn)]

    assert (report.main(told), report.main(told)) == (0, 0)
    text = page.read_text()

    assert text.startswith(f"# Tests\n{report.BEGIN}\n51,040 images in 58 jobs of three tenants, and 1,295 faults")
    assert text.endswith(f"{report.END}\nmore\n")
    assert "old" not in text
    assert "| settlements refused, because the lease was lost | 91 |" in text
    assert "unlike a second rendering | 3 |" in text
    assert "overwriting PUTs | 234 of 1,235 | 12 |" in text
    assert drawn.stat().st_size > 1_000


def test_a_page_without_the_marks_is_left_as_it_is(
    storm: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "README.md"
    page.write_text("# Tests\n")
    (tmp_path / "storm.json").write_text(json.dumps(storm))

    assert report.main([str(tmp_path), "--page", str(page), "--chart", str(tmp_path / "chart.svg")]) == 1
    assert page.read_text() == "# Tests\n"
    assert "put it where the results are to stand" in capsys.readouterr().err
