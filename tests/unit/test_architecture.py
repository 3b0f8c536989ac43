"""Rules of the code: who imports whom, what logs say, and that tables and migrations agree on names."""

import ast
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

from services.core import logs
from services.core.db import columns, partitions, tables
from services.core.db.columns import Payload
from services.core.db.statements import statement
from services.core.model import ids
from services.core.model.requests import ImageRequest
from services.core.model.specs import Shape

ROOT = Path(__file__).parents[2]


def test_packages_import_only_what_the_contracts_allow():
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_keys_ids_and_secrets_are_made_with_secrets_alone():
    """`random` can be guessed: it is for jitter, samples, ports and pictures."""
    found = {
        str(file.relative_to(ROOT))
        for folder in (
            "services/api",
            "services/core",
            "services/dashboard",
            "services/cli",
            "services/local",
            "scheduler",
        )
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"\brandom\.\w+\(|__import__|import random|from random", file.read_text(encoding="utf-8"))
    }
    assert found == {
        "services/core/auditing/records.py",
        "services/core/items/recipes.py",
        "services/core/webhooks/retries.py",
        "services/local/home.py",
    }


def test_the_lock_names_versions_and_no_address():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, separator, version = line.partition("==")
        assert separator, line
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum(), line
        assert "/" not in version, line


def test_a_log_line_is_one_json_object_whatever_is_in_it():
    record = logging.makeLogRecord({"msg": "settled\nforged: line", "levelname": "INFO", "claim": 7, "who": "\x1b[2J"})
    line = logs.JsonLines("worker").format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["claim"] == 7


def test_job_ids_are_ordered_by_time_and_survive_the_way_there_and_back():
    numbers = [ids.new() for _ in range(100)]
    assert len(set(numbers)) == 100
    assert [ids.parse_job(ids.public_job(number)) for number in numbers] == numbers
    assert sorted(map(ids.public_job, numbers)) == [ids.public_job(number) for number in sorted(numbers)]


def test_a_partition_is_named_after_the_monday_of_its_week():
    job_id = ids.new()
    monday = ids.moment(job_id).date()
    assert partitions.partition_name("images", job_id) <= f"images_{monday:%Y%m%d}"
    assert len(partitions.partition_name("images", job_id)) == len("images_20260101")


def test_a_payload_has_an_attribute_for_every_column_and_a_cell_in_the_row_that_is_copied():
    request = ImageRequest.model_validate({"prompt": "a\tmug \\", "seed": 5})
    row, said = columns.payload_row(request, job_id=1, index=2, segment_id=3, seed=5, guidance_scale=7.5)
    assert [column.name for column in columns.PAYLOAD] == ["job_id", *Payload.__slots__]
    assert [column.name for column in tables.payloads.columns] == ["job_id", *Payload.__slots__]
    assert row == "1\t2\t1\t3\t5\t7.5\tpng\t\\N\ta\\tmug \\\\\t\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n"
    assert said == "png\t\\N\ta\\tmug \\\\\t\t\\N"  # as it was before there was metadata: keys stand for it


def test_the_columns_of_a_shape_are_the_attributes_of_a_shape():
    assert tuple(column.name for column in columns.shape_columns()) == columns.SHAPE == Shape.__slots__


def test_every_statement_has_the_name_of_its_file_and_its_own():
    core = ROOT / "services/core"
    found: dict[str, Path] = {}
    for path in sorted(core.rglob("*.py")):
        if path.name in ("tables.py", "statements.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "text":  # settings of a session or transaction alone
                assert re.match(r"f?[\"'](SET LOCAL|SHOW|COMMENT ON|SELECT rolname)", ast.unparse(node.args[0])), (
                    path,
                    node.lineno,
                )
            elif node.func.id == "statement" and isinstance(node.args[0], ast.Constant):
                name = node.args[0].value
                assert name.startswith(f"{path.stem}."), (path, name)
                assert found.setdefault(name, path) == path, f"{name} is in two files"
    assert len(found) > 150


def test_a_statements_name_is_a_comment_after_its_first_word():
    assert statement("jobs.find")("\nSELECT 1").text == "SELECT /* jobs.find */ 1"
    assert statement("jobs.find")("(SELECT 1)\nUNION ALL (SELECT 2)").text.startswith("(SELECT /* jobs.find */ 1)")


def test_every_link_in_a_page_leads_to_a_file():
    pages = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert [(page, target) for page, target in links if not (ROOT / page).parent.joinpath(target).exists()] == []
    assert len(links) > 50
