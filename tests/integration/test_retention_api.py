"""Retention over HTTP and on the command line: the rule, a job's own days, and the dry run."""

import json

from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.jobs import lifecycle
from services.core.model import ids
from tests import factories
from tests.web import Api


def test_a_rule_is_set_kind_by_kind_and_shown(api: Api):
    shown = api.http.get("/v1/retention").json()
    assert shown == {"object": "retention", "payloads": None, "objects": None, "records": None, "updated_at": None}
    api.http.patch("/v1/retention", json={"payloads": 30, "objects": 90})
    changed = api.http.patch("/v1/retention", json={"objects": None, "records": 400}).json()
    assert (changed["payloads"], changed["objects"], changed["records"]) == (30, None, 400)
    for wrong in (-1, 36_501, "7", 1.5):
        refused = api.http.patch("/v1/retention", json={"objects": wrong})
        assert refused.status_code == 422, wrong
        assert "a whole number of days from 0 to 36500" in refused.json()["error"]["message"]


def test_a_jobs_own_days_are_checked_and_kept(api: Api):
    factories.register(api.database)
    asked = {"images": [{"prompt": "a mug"}]}
    for wrong in ({"pictures": 1}, {"objects": -1}, {"objects": "7"}, [1]):
        refused = api.http.post("/v1/jobs", json=asked | {"retention": wrong})
        assert refused.status_code == 422, wrong
        assert "payloads, objects and records" in refused.json()["error"]["message"], refused.text
    plain = api.http.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "a"}).json()["id"]
    assert api.http.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "a"}).json()["id"] == plain
    kept = asked | {"retention": {"objects": 30, "records": None}}
    assert api.http.post("/v1/jobs", json=kept, headers={"Idempotency-Key": "a"}).status_code == 422  # another job
    job = api.http.post("/v1/jobs", json=kept).json()["id"]
    draft = api.http.post("/v1/jobs", json={"draft": True, "retention": {"payloads": 1}}).json()["id"]
    found = "SELECT retention FROM jobs WHERE id = :id"
    with api.database.begin_system() as connection:
        days = [connection.execute(text(found), {"id": ids.parse_job(one)}).scalar_one() for one in (job, draft)]
    assert days == [{"objects": 30, "records": None}, {"payloads": 1}]


def test_what_is_due_is_listed_over_http_and_on_the_command_line(api: Api, monkeypatch):
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    factories.register(api.database)
    job_id = factories.submit(api.database, api.settings, 2)
    while claim := factories.claim(api.database):
        factories.settle(api.database, claim, stored=factories.stored(claim))
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
        lifecycle.finish(connection)
        connection.execute(text("UPDATE jobs SET finished_at = now() - interval '8 days'"))
    run = CliRunner()
    answer = run.invoke(app, ["retention", "set", "--objects", "10d", "--payloads", "1w"])
    assert answer.exit_code == 0 and "kept for 10 days" in answer.output, answer.output
    shown = json.loads(run.invoke(app, ["retention", "show", "--json"]).stdout)
    assert [(one["job_id"], one["kind"]) for one in shown["due"]] == [(ids.public_job(job_id), "payloads")]
    later = api.http.get("/v1/retention/due", params={"within_days": 5}).json()
    assert [one["kind"] for one in later["data"]] == ["payloads", "objects"] and not later["more"]
    assert ids.public_job(job_id) in run.invoke(app, ["retention", "show", "--within", "1w"]).output
    refused = run.invoke(app, ["retention", "set", "--objects", "soon"])
    assert refused.exit_code == 2 and "30d, 8w, 1y" in refused.output
