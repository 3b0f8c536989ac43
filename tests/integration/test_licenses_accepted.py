"""Licences of models are accepted once per tenant: who and when, where it is shown, and what waits for it."""

import dataclasses
import json

import httpx
import pytest
from typer.testing import CliRunner

from services.cli.app import app
from services.core.exports import members, readme
from services.core.jobs import lifecycle
from services.core.model import ids, licenses
from services.core.model.specs import FailedImage
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories
from tests.pages import House
from tests.web import Api, open_api

LICENSE = licenses.named("creativeml-openrail-m")
CARD = dataclasses.replace(factories.CARD, license=LICENSE)
PLACE = "/v1/models/simulated/license/accept"
ASKED = {"images": [{"prompt": "a mug"}]}


@pytest.fixture
def strict(settings: Settings, store: S3Store):
    with open_api(dataclasses.replace(settings, require_license_acceptance=True)) as api:
        factories.register(api.database, CARD)
        yield api


def test_nothing_is_drawn_before_the_licence_is_accepted_where_the_settings_require_it(strict: Api) -> None:
    before = strict.rows()
    answer = strict.http.post("/v1/jobs", json=ASKED)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "license_not_accepted")
    assert "presswork model accept-license simulated" in error["message"]
    answer = strict.http.post("/v1/images/generations", json={"prompt": "a mug"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "license_not_accepted")
    draft = strict.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    assert strict.http.put(f"/v1/jobs/{draft}/chunks/0", json=ASKED).status_code == 422
    assert strict.rows()["images"] == before["images"] == 0
    shown = strict.http.get("/v1/models/simulated").json()["license"]
    assert (shown["accepted"], shown["acceptance_required"]) == (None, True)
    assert strict.http.post(PLACE, json={"sha256": "0" * 64}).json()["error"]["code"] == "license_changed"
    found = strict.http.post(PLACE, json={"sha256": shown["sha256"]}).json()["license"]["accepted"]
    assert (found["by"], found["by_name"]) == (f"key/{strict.key.split('_')[1]}", "test")
    assert strict.http.post(PLACE).json()["license"]["accepted"] == found
    assert strict.http.post("/v1/jobs", json=ASKED).status_code == 202
    _, key = strict.new_tenant("other")
    with httpx.Client(base_url=strict.url, headers={"Authorization": f"Bearer {key}"}) as other:
        assert other.post("/v1/jobs", json=ASKED).status_code == 422
        assert other.get("/v1/models/simulated").json()["license"]["accepted"] is None


def test_a_licence_of_other_words_is_accepted_anew_and_a_retry_waits_for_it(strict: Api) -> None:
    strict.http.post(PLACE)
    job = strict.http.post("/v1/jobs", json=ASKED).json()["id"]
    claim = factories.claim(strict.database)
    assert claim is not None
    [image] = claim.images
    factories.settle(strict.database, claim, failed=[FailedImage(image.job_id, image.index, "error", "No.")])
    with strict.database.begin_system() as connection:
        lifecycle.finish(connection)
    other = dataclasses.replace(LICENSE, restrictions=("anything",))
    factories.register(strict.database, dataclasses.replace(CARD, license=other))
    assert strict.http.post("/v1/jobs", json=ASKED).json()["error"]["code"] == "license_not_accepted"
    answer = strict.http.post(f"/v1/jobs/{job}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "license_not_accepted")
    strict.http.post(PLACE)
    assert strict.http.post(f"/v1/jobs/{job}/retry").status_code == 202


def test_by_default_it_is_recorded_and_nothing_waits_for_it(api: Api) -> None:
    factories.register(api.database, CARD)
    job = api.http.post("/v1/jobs", json=ASKED)
    assert job.status_code == 202
    api.http.post(PLACE)
    with api.database.begin_system() as connection:
        _, found = members.models_of(connection, [ids.parse_job(job.json()["id"])])
    assert found["simulated"].accepted_by == "test"
    assert f"test accepted it on {found['simulated'].accepted_at}." in "\n".join(readme.licenses(found))
    assert json.loads(json.dumps(found["simulated"].as_json()))["accepted_by"] == "test"
    assert found["simulated"].sha256 == LICENSE.sha256


def test_a_model_without_a_licence_has_nothing_to_accept(api: Api) -> None:
    answer = api.http.post(PLACE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_license")
    assert api.http.post(PLACE.replace("simulated", "nobody")).status_code == 404


def test_the_command_shows_what_is_forbidden_and_accepts(strict: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESSWORK_URL", strict.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", strict.key)
    done = CliRunner().invoke(app, ["model", "accept-license", "simulated", "--yes"])
    assert done.exit_code == 0, done.output
    assert "must not be used for breaking any law" in done.output
    assert "accepted by test on " in done.output
    assert CliRunner().invoke(app, ["model", "accept-license", "nobody", "--yes"]).exit_code == 2


def test_the_models_page_has_a_button_for_admins(strict: Api) -> None:
    browser = httpx.Client(base_url=strict.url, timeout=60, trust_env=False)
    House(strict, factories.TENANT, strict.key, strict.http, browser).sign_in()
    page = browser.get("/settings/models/simulated")
    assert "Nothing is drawn with this model" in page.text
    token = page.text.partition('name="csrf" value="')[2].partition('"')[0]
    digest = page.text.partition('name="sha256" value="')[2].partition('"')[0]
    place = "/settings/models/simulated/license/accept"
    assert browser.post(place, data={"csrf": "no", "sha256": digest}).status_code == 403
    browser.post(place, data={"csrf": token, "sha256": digest})
    assert "Accepted by" in browser.get("/settings/models/simulated").text
    assert strict.http.post("/v1/jobs", json=ASKED).status_code == 202
