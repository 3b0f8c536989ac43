"""PRESSWORK_SECRET is exchanged while servers run: for as long as two secrets hold, no key, link or cursor dies."""

import dataclasses

import httpx

from tests import factories
from tests.web import open_api

NEW = "the new secret " * 3


def test_keys_links_and_cursors_outlive_an_exchange_of_the_secret(api, settings):
    keys = [api.new_tenant(name)[1] for name in ("used meanwhile", "not used")]
    jobs = [api.submit() for _ in range(3)]
    factories.settle(api.database, factories.claim(api.database))
    job = next(job for job in api.http.get("/v1/jobs").json()["data"] if job["counts"]["done"])["id"]
    old_link = api.http.get(f"/v1/jobs/{job}/images").json()["data"][0]["url"]
    cursor = api.http.get("/v1/jobs?limit=2").json()["next_cursor"]

    def status(server: str, path: str, key: str | None = None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.get(server + path, headers=headers, trust_env=False).status_code

    path = old_link.removeprefix(api.url)
    both = dataclasses.replace(settings, secret=NEW, accepted_secret=settings.secret)
    with open_api(both) as exchanged:
        assert status(exchanged.url, "/v1/jobs", api.key) == status(exchanged.url, "/v1/jobs", keys[0]) == 200
        assert status(exchanged.url, path) == 307
        page = exchanged.http.get(f"/v1/jobs?limit=2&cursor={cursor}").json()
        assert [entry["id"] for entry in page["data"]] == [jobs[0]["id"]]
        new_link = exchanged.http.get(f"/v1/jobs/{job}/images").json()["data"][0]["url"]
        new_path = new_link.removeprefix(exchanged.url)
        assert new_path != path
        assert (
            status(api.url, new_path) == 404 and status(api.url, "/v1/jobs", api.key) == 401
        )  # it knows the old alone
    between = dataclasses.replace(settings, accepted_secret=NEW)  # one of several servers, told of the new one first
    with open_api(between) as prepared:
        assert status(prepared.url, "/v1/jobs", api.key) == 200
        assert status(prepared.url, new_path) == status(prepared.url, path) == 307
    with open_api(both) as exchanged:
        assert status(exchanged.url, "/v1/jobs", api.key) == 200
    with open_api(dataclasses.replace(settings, secret=NEW)) as done:
        assert [status(done.url, "/v1/jobs", key) for key in (api.key, *keys)] == [200, 200, 401]
        assert status(done.url, new_path) == 307
        assert status(done.url, path) == 404
        assert status(done.url, "/v1/jobs", "pw_" + "a" * 8 + "_" + "b" * 43) == 401
