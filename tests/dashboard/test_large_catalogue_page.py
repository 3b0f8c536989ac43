"""What the pages of a large catalogue cost: `tests/chaos/test_large_catalogue.py` tests the same with 200,000 items."""

import re

from sqlalchemy import text

from services.core.catalogues import catalogue_runs, unmarked
from tests.cataloguing import DEFINITION
from tests.dashboard.test_large_job_page import MOST_STATEMENTS, alone, assert_cheap
from tests.integration.test_overview import MOST_ROWS, fill, rows_read
from tests.pages import House

__all__ = ["alone"]
VERSIONS = 32
_CATALOGUE = """
UPDATE catalogues SET version = :versions + 1, published = :versions WHERE id = :id;
INSERT INTO catalogue_runs (id, tenant_id, catalogue_id, state, plan_only, accept_removed, definition, base, version,
  job_id, source, counts, causes, planned_at, rendered_at, finished_at, created_at)
SELECT :id + nth, :tenant, :id,
  CASE WHEN nth = 100 THEN 'reviewing' WHEN nth % 7 = 3 THEN 'failed' ELSE 'published' END, nth % 5 = 2, false,
  definition, :versions, CASE WHEN nth = 100 THEN :versions + 1 ELSE nth END,
  CASE WHEN nth = 100 THEN :job END, jsonb_build_object('items', :items, 'title', 'shop.csv', 'bytes', 9),
  jsonb_build_object('changed', :items, 'to_review', :items / 2, 'images', :items), '{"error": 4}', now(), now(),
  CASE WHEN nth < 100 THEN now() END, now() - (100 - nth) * interval '1 day'
FROM catalogues, generate_series(1, 100) AS nth WHERE catalogues.id = :id;
INSERT INTO catalogue_versions (catalogue_id, version, run_id, images, bytes, manifests)
SELECT :id, nth, :id + nth, :items, 9, '{}' FROM generate_series(1, :versions) AS nth;
INSERT INTO catalogue_changes (run_id, position, item, variant, kind, line, request, code, message)
SELECT :id + 100, nth, 'sku-' || nth, 'front', CASE WHEN nth % 4 = 0 THEN 'new' ELSE 'changed' END, nth,
  '{"prompt": "a mug", "seed": 7}', CASE WHEN nth % 2 = 1 THEN 'code' || nth % 7 END, 'It broke.'
FROM generate_series(0, :items - 1) AS nth;
INSERT INTO catalogue_entries (catalogue_id, item, variant, from_version, until_version, render_key, object_key, sha256,
  bytes, request, model_revision, reproducibility_class, rendered_at, job_id, index)
SELECT :id, 'sku-' || nth, 'front', began, CASE WHEN nth < :items / 10 AND began < :versions THEN began + 1 END, 'k',
  'k', sha256(CAST(nth || ' ' || began AS bytea)), 1, '{"prompt": "a mug", "seed": 7}', 'r', 'c', now(), 1, 0
FROM generate_series(0, :items - 1) AS nth, generate_series(1, :versions) AS began
WHERE began = 1 OR nth < :items / 10;
INSERT INTO marks (job_id, index, mark, actor) SELECT :job, nth, 'accepted', 'a' FROM generate_series(0, 400) AS nth;
INSERT INTO mark_counts (job_id, accepted, rejected, starred) VALUES (:job, 401, 0, 0);
"""


def large_catalogue(house: House, items: int) -> str:
    """A tenth of its items differ in each of its versions. The newest run has changed all items, half of them with a
    picture to be reviewed; the address of its report."""
    house.http.put("/v1/catalogues/shop", json=DEFINITION)
    job = fill(house.api.database, house.api.settings, items, tenant=house.tenant)
    with house.api.database.begin_system() as connection:
        found = connection.execute(text("SELECT id FROM catalogues")).scalar_one()
        values = {"id": found, "tenant": house.tenant, "items": items, "versions": VERSIONS, "job": job}
        for statement in _CATALOGUE.strip().split(";\n"):
            connection.execute(text(statement), values)
    with house.api.database.begin_system() as connection:
        connection.execute(text("ANALYZE catalogue_entries, catalogue_changes, catalogue_runs, marks, results"))
    return f"/catalogues/shop/runs/{catalogue_runs.public_id(found + 100)}"


def pages(report: str) -> list[str]:
    return [
        "/catalogues", "/catalogues/shop", report, f"{report}?kind=changed", f"{report}?cause=code3",
        f"{report}/changes/7", "/catalogues/shop/diff?from=8&to=9",
        f"/catalogues/shop/diff?from=1&to={VERSIONS}", "/catalogues/shop/actions/publish?version=2",
    ]  # fmt: skip


def searches(report: str) -> list[str]:
    """No index knows marks of a run's changes: these look at LOOKED_AT changes."""
    return [f"{report}/review", f"{report}/review?mark=rejected"]


def assert_bounded(house: House, path: str) -> None:
    with rows_read() as read:
        assert house.browser.get(path).status_code == 200
    assert len(read) <= MOST_STATEMENTS, read
    assert read.pop("unmarked.following") <= 7 * unmarked.LOOKED_AT
    assert max(read.values()) <= MOST_ROWS, read


def test_no_page_of_a_large_catalogue_sends_more_than_ten_statements_or_reads_many_rows(alone: House) -> None:
    report = large_catalogue(alone, 6_000)
    for path in pages(report):
        assert_cheap(alone, path)
    for path in searches(report):
        assert_bounded(alone, path)
    asked = f"/catalogues/shop/actions/publish?version={VERSIONS - 2}"
    assert "at least 112 pictures differ" in alone.browser.get(asked).text
    seen, address = [], "/catalogues/shop/diff?from=8&to=9"
    for _ in range(3):
        page = alone.browser.get(address).text
        seen += re.findall(r"<strong>(sku-\d+)</strong>", page)
        address = re.findall(r'data-more href="([^"]+)"', page)[0].replace("&amp;", "&")
    assert seen == sorted(f"sku-{nth}" for nth in range(600))[:54]
